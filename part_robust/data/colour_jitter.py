"""Colour jitter of training images, a batch at a time on the device of the model.

The numbers are drawn with the image, in the loader's workers, so that images are the same for any batch size and number
of processes (on a GPU except for rounding). Letters: N images, H W pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor
from torchvision.transforms import ColorJitter

from part_robust.utils.transfer import to_device

# Factors that change nothing, by operation: brightness, contrast, saturation, hue.
NEUTRAL = (1.0, 1.0, 1.0, 0.0)
# Luma of ITU-R BT.601, as torchvision has it.
LUMA = (0.2989, 0.587, 0.114)


class JitteredLoader:
    """A train loader whose images have the colours that their `colours` say: uint8 (3, H, W), on the device.

    Attributes:
        dataset: of the loader.
    """

    def __init__(self, loader: Iterable[list[dict]], device: torch.device | str) -> None:
        """Wrap the train loader.

        Args:
            loader: yields batches of items of `PartDatasetMapper`, all images of one size.
            device: of the model.
        """
        self.loader = loader
        self.device = torch.device(device)
        self.dataset = getattr(loader, "dataset", None)

    def __iter__(self) -> Iterator[list[dict]]:
        for batch in self.loader:
            yield jittered(batch, self.device)


def draw_colours(jitter: ColorJitter) -> tuple[list[int], list[float]]:
    """Return a random order of the four operations, and their factors, as torchvision draws them."""
    order, *factors = jitter.get_params(jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue)
    filled = [same if factor is None else float(factor) for factor, same in zip(factors, NEUTRAL, strict=True)]
    return order.tolist(), filled


@torch.no_grad()
def jittered(batch: Sequence[dict], device: torch.device) -> list[dict]:
    """Return the items with the colours that their `colours` say, which is left out of them.

    Args:
        batch: items of `PartDatasetMapper` with a jitter, all images of one size: uint8 (3, H, W).
        device: where the images are changed, and stay.
    """
    order = torch.tensor([item["colours"][0] for item in batch])
    # Of every step, the images by operation; counted on the host, which must not wait for the device.
    counts = [torch.bincount(step, minlength=len(OPERATIONS)).tolist() for step in order.T]
    tensors = {
        "images": torch.stack([item["image"] for item in batch]),
        "rows": order.argsort(dim=0).T.contiguous(),
        "factors": torch.tensor([item["colours"][1] for item in batch]),
    }
    moved = to_device(tensors, device)
    images = moved["images"].float()
    for rows, sizes in zip(moved["rows"], counts, strict=True):
        for index, (operation, own) in enumerate(zip(OPERATIONS, rows.split(sizes), strict=True)):
            if len(own):
                images[own] = operation(images[own], moved["factors"][own, index].view(-1, 1, 1, 1))
    changed = images.round().to(torch.uint8)
    kept = [{key: value for key, value in item.items() if key != "colours"} for item in batch]
    return [{**item, "image": image} for item, image in zip(kept, changed, strict=True)]


def _brightness(images: Tensor, factor: Tensor) -> Tensor:
    return (images * factor).clamp(0, 255)


def _contrast(images: Tensor, factor: Tensor) -> Tensor:
    return _blend(images, _grey(images).mean(dim=(-2, -1), keepdim=True), factor)


def _saturation(images: Tensor, factor: Tensor) -> Tensor:
    return _blend(images, _grey(images), factor)


def _hue(images: Tensor, shift: Tensor) -> Tensor:
    """Turn the hue by `shift` (N, 1, 1, 1), -0.5..0.5 of the circle, in the HSV model."""
    red, green, blue = images.unbind(1)
    value = images.amax(dim=1)
    chroma = value - images.amin(dim=1)
    divisor = torch.where(chroma > 0, chroma, 1.0)
    sextant = torch.where(value == green, (blue - red) / divisor + 2, (red - green) / divisor + 4)
    sextant = torch.where(value == red, (green - blue) / divisor, sextant) + 6 * shift[:, 0]

    def channel(offset: int) -> Tensor:
        place = (sextant + offset) % 6
        return value - chroma * torch.minimum(place, 4 - place).clamp(0, 1)

    return torch.stack([channel(offset) for offset in (5, 3, 1)], dim=1)


def _grey(images: Tensor) -> Tensor:
    red, green, blue = images.split(1, dim=1)
    return LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue


def _blend(images: Tensor, others: Tensor, factor: Tensor) -> Tensor:
    return (factor * images + (1 - factor) * others).clamp(0, 255)


# In the order of torchvision's ColorJitter: float (N, 3, H, W), 0..255, and factors (N, 1, 1, 1) -> such images.
OPERATIONS = (_brightness, _contrast, _saturation, _hue)
