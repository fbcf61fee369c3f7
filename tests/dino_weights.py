"""Weights as a function of public parameter names and shapes, so that parity needs numbers only, no checkpoint.

The reference numbers were computed by the authors' implementation (IDEA-Research/DINO, commit faa8520) with weights
from the same function, see tests/fixtures/make_dino_small.py.
"""

from __future__ import annotations

import zlib

import numpy as np
import torch
from torch import Tensor

from part_robust.layers.ms_deform_attn import MSDeformAttn


def official_names(names: list[str]) -> dict[str, str]:
    """Our parameter and buffer names -> the authors' ones."""
    return {name: _official(name) for name in names}


def _official(name: str) -> str:
    if name.startswith("backbone."):
        _, stage, *rest = name.split(".")
        if stage == "stem":
            return "backbone.0.body." + {"conv1": "bn1" if "norm" in rest else "conv1"}["conv1"] + f".{rest[-1]}"
        layer = f"backbone.0.body.layer{int(stage[3:]) - 1}.{rest[0]}"
        norm = "norm" in rest
        if rest[1] == "shortcut":
            return f"{layer}.downsample.{int(norm)}.{rest[-1]}"
        return f"{layer}.{rest[1].replace('conv', 'bn') if norm else rest[1]}.{rest[-1]}"
    name = name.removeprefix("segmenter.")
    if name.startswith(("encoder.", "decoder.", "tgt_embed.", "level_embed")):
        return f"transformer.{name}"
    return name.replace("query_selection.", "transformer.")


def make_weight(key: str, shape: tuple[int, ...], heads: int = 8, levels: int = 4, points: int = 4) -> Tensor:
    """The value of the parameter or buffer `key` (a public name)."""
    r = np.random.RandomState(zlib.crc32(key.encode()) & 0x7FFFFFFF).standard_normal(shape).astype(np.float32)
    leaf = key.rsplit(".", 1)[-1]
    if leaf == "running_var":
        value = 1 + 0.1 * np.abs(r)
    elif leaf == "running_mean":
        value = 0.1 * r
    elif any(word in key for word in ("label_enc", "tgt_embed", "query_feat", "query_embed", "level_embed")):
        value = 0.5 * r
    elif len(shape) == 1:
        value = 1 + 0.1 * r if leaf == "weight" else 0.05 * r
        if key.endswith("sampling_offsets.bias"):
            dim = shape[0] // (levels * points * 2) * 4
            attention = MSDeformAttn(dim=dim, heads=heads, levels=levels, points=points)
            value = value + attention.sampling_offsets.bias.detach().numpy()
    else:
        value = r / np.sqrt(np.prod(shape[1:]))
    return torch.from_numpy(np.asarray(value, dtype=np.float32))


@torch.no_grad()
def fill(model: torch.nn.Module) -> None:
    """Gives a `PartClassifier` with a DINO segmenter the weights of `make_weight`."""
    state = {name: value for name, value in model.state_dict().items() if not name.startswith("head.")}
    for name, key in official_names(list(state)).items():
        if not name.endswith("num_batches_tracked"):
            state[name].copy_(make_weight(key, tuple(state[name].shape)))


# The small network of tests/fixtures/dino_small.npz.
PARITY = {"classes": 12, "encoder_layers": 2, "decoder_layers": 3, "queries": 40, "size": 96}


def parity_image() -> tuple[Tensor, Tensor]:
    """Normalised images (2, 3, 96, 96), the second with padding, which is 0; and the padding mask."""
    size = PARITY["size"]
    image = torch.from_numpy(np.random.RandomState(0).standard_normal((2, 3, size, size)).astype(np.float32))
    mask = torch.zeros(2, size, size, dtype=torch.bool)
    mask[1, 80:] = True
    mask[1, :, 72:] = True
    return image.masked_fill(mask[:, None], 0.0), mask


def parity_targets(equal: bool = False) -> tuple[list[Tensor], list[Tensor]]:
    """Labels (G,) and boxes (G, 4) cxcywh, 0..1 of the unpadded image, of both images: 3 and 2, or 3 and 3."""
    labels = [torch.tensor([3, 3, 7]), torch.tensor([11, 0])]
    boxes = [
        torch.tensor([[0.3, 0.4, 0.2, 0.3], [0.6, 0.5, 0.5, 0.2], [0.8, 0.2, 0.1, 0.1]]),
        torch.tensor([[0.5, 0.5, 0.9, 0.8], [0.2, 0.7, 0.3, 0.4]]),
    ]
    if equal:
        labels[1] = torch.cat([labels[1], torch.tensor([5])])
        boxes[1] = torch.cat([boxes[1], torch.tensor([[0.4, 0.4, 0.2, 0.2]])])
    return labels, boxes
