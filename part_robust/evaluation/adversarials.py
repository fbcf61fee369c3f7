"""Adversarial images on disk, without loss, so that others can score them.

A folder for each tier holds `batch_<hash>.npz` with `image_id`, `label`, `eps`, `norm`, what the model said about
exactly the saved images (`prediction`, `pixels_right`, where the model has classes, parts), and the images: `images`
float32 (N, 3, H, W), or one 8-bit `<image id>.png` for each. `round_<number>_<hash>.npz` are the same of images that a
later round broke; they replace those in `batch_<hash>.npz`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from part_robust.attacks import ThreatModel
from part_robust.evaluation.attacked_batch import AttackedBatch, label_counts
from part_robust.evaluation.conversion import host_outputs
from part_robust.utils.errors import UserError
from part_robust.utils.files import check_file, read_arrays, replacing

MODES = ("", "npz", "png")


def round_into_ball(attacked: Tensor, images: Tensor, threat_model: ThreatModel) -> Tensor:
    """The attacked images with whole pixel values, which 8 bits can hold, still allowed by the threat model.

    Args:
        attacked: (N, 3, H, W), 0..255.
        images: the originals, with whole pixel values.
        threat_model: of the attack.

    Raises:
        ValueError: the originals are not whole, so there may be no allowed whole value near them.
    """
    if not torch.equal(images, images.round()):
        raise ValueError(
            "TEST.SAVE_ADVERSARIALS png needs images with whole pixel values; these have fractions: use npz"
        )
    delta = attacked - images
    if threat_model.norm == "linf":
        largest = float(np.floor(threat_model.eps + 1e-4))
        delta = delta.round().clamp(-largest, largest)
    else:
        delta = delta.trunc()  # never longer
    return (images + delta).clamp(threat_model.low, threat_model.high)


def save_adversarials(
    folder: Path,
    mode: str,
    batch: AttackedBatch,
    images: Tensor,
    outputs: list[dict],
    threat_model: ThreatModel,
    name: str = "batch",
) -> np.ndarray | None:
    """Writes a batch's attacked images, each file whole or not at all.

    Args:
        folder: of the tier.
        mode: "npz" or "png".
        batch: where the images come from.
        images: (N, 3, H, W), attacked.
        outputs: the model's, of `images`.
        threat_model: of the tier.
        name: beginning of the file's name, "batch" or "round_<number>", whose images replace the same ones of "batch".

    Returns:
        Mode "png": predicted classes int64 (N,) of the rounded images, None for models without classes or other modes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {
        "image_id": batch.keys.numpy(),
        "label": batch.labels.cpu().numpy(),
        "eps": np.array(threat_model.eps),
        "norm": np.array(threat_model.norm),
    }
    if mode == "png":
        images = round_into_ball(images, batch.images, threat_model)
        threat_model.verify(images, batch.images)
        outputs = batch.outputs(images)
        for image_id, image in zip(arrays["image_id"].tolist(), images.byte().cpu().numpy(), strict=True):
            _save_png(folder / f"{image_id}.png", image)
    else:
        arrays["images"] = images.float().cpu().numpy()
    arrays.update(outputs_to_compare(outputs, batch.items, batch.num_parts))
    digest = hashlib.sha256(arrays["image_id"].tobytes()).hexdigest()[:16]
    path = folder / f"{name}_{digest}.npz"
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]  # no array is called allow_pickle
    return arrays.get("prediction") if mode == "png" else None


def outputs_to_compare(outputs: list[dict], items: list[dict], num_parts: int) -> dict[str, np.ndarray]:
    """Return what is compared when images are scored again: `prediction` (N,) and `pixels_right` (N,), if predicted."""
    arrays = {}
    outputs = host_outputs(outputs)
    if "class_logits" in outputs[0]:
        arrays["prediction"] = torch.stack([output["class_logits"] for output in outputs]).argmax(dim=1).numpy()
    if "labels" in outputs[0] or "instances" in outputs[0]:
        arrays["pixels_right"] = label_counts(outputs, items, num_parts).right.numpy()
    return arrays


def load_adversarials(folder: Path) -> Iterator[dict[str, np.ndarray]]:
    """The batches of a tier's folder, each with `images` float32 (N, 3, H, W) whichever way they were saved.

    Raises:
        FileNotFoundError: there are none, or a picture is missing.
        UserError: a file is damaged or cut off.
    """
    later = sorted(folder.glob("round_*.npz"))
    paths = [*later, *sorted(folder.glob("batch_*.npz"))]
    if len(paths) == len(later):
        raise FileNotFoundError(
            f"{folder} holds no adversarial images: evaluate with TEST.SAVE_ADVERSARIALS npz or png"
        )
    seen: set[int] = set()
    for path in paths:
        arrays = _without(read_arrays(path, "attacked images"), seen)
        missing = [name for name in ("image_id", "label", "eps", "norm") if name not in arrays]
        if missing:
            raise UserError(f"{path} must be a whole file of attacked images, got one without {missing[0]}")
        if not len(arrays["image_id"]):
            continue
        if "images" not in arrays:
            arrays["images"] = _load_pngs(folder, arrays["image_id"].tolist())
        number, images = len(arrays["image_id"]), arrays["images"]
        if images.ndim != 4 or len(images) != number or images.dtype.kind != "f":
            raise UserError(
                f"{path} must hold {number} images (3, H, W) of float32, got {images.dtype} {images.shape}: evaluate "
                "again"
            )
        if path in later:
            seen.update(arrays["image_id"].tolist())
        yield arrays


def _without(arrays: dict[str, np.ndarray], image_ids: Collection[int]) -> dict[str, np.ndarray]:
    """The arrays without the images of these ids."""
    if not image_ids or "image_id" not in arrays:
        return arrays
    kept = ~np.isin(arrays["image_id"], list(image_ids))
    return {
        name: array[kept] if np.ndim(array) and len(array) == len(kept) else array for name, array in arrays.items()
    }


def _save_png(path: Path, image: np.ndarray) -> None:
    """image: uint8 (3, H, W)."""
    with replacing(path) as temporary:
        Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))).save(temporary, format="PNG")


def _load_pngs(folder: Path, image_ids: Sequence[int]) -> np.ndarray:
    images = []
    for image_id in image_ids:
        path = folder / f"{image_id}.png"
        check_file(path, "an image file")
        with Image.open(path) as file:
            images.append(np.asarray(file.convert("RGB"), dtype=np.float32).transpose(2, 0, 1))
    return np.stack(images)
