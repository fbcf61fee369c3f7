"""Accuracy under common corruptions (Hendrycks and Dietterich, 2019): noise, blur, weather, compression. No adversary.

The corruptions are those of the package imagecorruptions-imaug (pip install part_robust[corruptions]).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

SEVERITIES = (1, 2, 3, 4, 5)


def corruption_names(subset: str = "common") -> list[str]:
    """Return the names of the corruptions of a subset.

    Args:
        subset: "common" for the fifteen of the paper, "validation" for the four to tune on, "all", or "noise", "blur",
            "weather" or "digital".

    Raises:
        ModuleNotFoundError: the package is missing.
    """
    return list(_package().get_corruption_names(subset))


def corrupted(image: Tensor, name: str, severity: int, key: int) -> Tensor:
    """One image, uint8 (3, H, W) RGB, at least 32 pixels wide and high; the same for the same arguments."""
    corrupt: Callable[..., np.ndarray] = _package().corrupt
    # The package draws from numpy's global generator.
    before = np.random.get_state()  # noqa: NPY002
    digest = hashlib.blake2b(f"{name} {severity} {key}".encode(), digest_size=4).digest()
    np.random.seed(int.from_bytes(digest, "big"))  # noqa: NPY002
    try:
        pixels = corrupt(image.permute(1, 2, 0).contiguous().numpy(), corruption_name=name, severity=severity)
    finally:
        np.random.set_state(before)  # noqa: NPY002
    return torch.from_numpy(np.array(pixels)).permute(2, 0, 1).contiguous()  # some are read-only


class CorruptedLoader:
    """A loader of the mapper's dicts whose images are corrupted."""

    def __init__(self, loader: Any, name: str, severity: int) -> None:
        """Wrap a loader.

        Raises:
            ValueError: no such severity.
        """
        if severity not in SEVERITIES:
            raise ValueError(f"severity must be one of {SEVERITIES}, is {severity}")
        self.loader = loader
        self.name = name
        self.severity = severity

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[list[dict]]:
        for batch in self.loader:
            yield [
                {**item, "image": corrupted(item["image"], self.name, self.severity, item["image_id"])}
                for item in batch
            ]


def mean_over(rows: Iterable[dict[str, Any]], metrics: Sequence[str]) -> dict[str, float]:
    """Mean over corruptions and severities of the metrics that every row has."""
    rows = list(rows)
    return {m: float(np.mean([row[m] for row in rows])) for m in metrics if all(row.get(m) is not None for row in rows)}


def _package() -> Any:
    try:
        import imagecorruptions
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "common corruptions need the package imagecorruptions-imaug: pip install part_robust[corruptions]"
        ) from error
    return imagecorruptions
