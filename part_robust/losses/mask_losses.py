"""Cross-entropy and dice of masks (Milletari et al., 2016; Cheng et al., 2022), on pixels or on sampled points.

Letters: T sets of predictions (decoder layers), N images, Q queries, E channels of mask features, G true parts
(padded), M denoising groups, R = M G pairs of an image, h w pixels of predicted masks, H W pixels of true masks,
L pixels or points, B pairs of all sets and images together.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from part_robust.structures import Matching, PredictedMasks, TrueMasks


class DenseMaskLoss:
    """Losses of masks on every pixel of the predicted ones; the true ones are averaged down to them.

    At 224 px that is 3136 pixels, fewer than the published number of points, and nothing is random.
    """

    def prepare(self, masks: Tensor, counted: Tensor, size: tuple[int, int]) -> TrueMasks:
        """Return the true masks as the losses compare them.

        Args:
            masks: bool (N, G, H, W).
            counted: bool (N, H, W), False where nothing is known.
            size: (h, w).
        """
        counted = counted[:, None]
        values = F.interpolate((masks & counted).float(), size=size, mode="area") if masks.shape[1] else None
        share = F.interpolate(counted.float(), size=size, mode="area")
        if values is None:
            values = share.new_zeros(len(masks), 0, *size)
        return TrueMasks(values.flatten(2), share[:, 0].flatten(1))

    @torch.no_grad()
    def cost(self, predicted: PredictedMasks, true: TrueMasks) -> tuple[Tensor, Tensor]:
        """Cross-entropy and dice (T, N, Q, G) of every query with every true part."""
        return _pairwise(predicted.logits().flatten(3).float(), true.values, true.counted)

    def sums(self, predicted: PredictedMasks, true: TrueMasks, matching: Matching) -> dict[str, Tensor]:
        """Return "mask" and "dice" (T, N), summed over the matched pairs; `matching` may have a true part M times."""
        logits = predicted.logits(matching.query).flatten(3).float()
        logits = logits.unflatten(2, (-1, true.values.shape[1])) if logits.shape[2] else logits[:, :, None]
        entropy, dice = _paired(logits, true.values[:, None], true.counted[:, None, None])
        matched = matching.matched
        return {
            "mask": entropy.flatten(2).where(matched, 0.0).sum(dim=-1),
            "dice": dice.flatten(2).where(matched, 0.0).sum(dim=-1),
        }


class PointMaskLoss:
    """Losses of masks on random points, as published.

    To match, they are uniform and the same for all masks of an image; to learn, most of them are where a predicted mask
    is least sure, of `oversample` times as many candidates (Kirillov et al., 2020).

    Points depend on `seed` and on the number of batches since the process started.
    """

    def __init__(
        self, *, num_points: int = 12544, oversample: float = 3.0, importance: float = 0.75, seed: int = 0
    ) -> None:
        """Set how points are drawn.

        Args:
            num_points: L.
            oversample: candidates per point.
            importance: share of points chosen for their uncertainty.
            seed: of the points.
        """
        self.num_points, self.oversample, self.importance = num_points, oversample, importance
        self.seed, self.batches = seed, 0
        self.generator = torch.Generator()

    def prepare(self, masks: Tensor, counted: Tensor, size: tuple[int, int]) -> TrueMasks:
        """Same as `DenseMaskLoss.prepare`; starts a new batch."""
        self.generator = torch.Generator(masks.device).manual_seed(self.seed + self.batches)
        self.batches += 1
        return TrueMasks((masks & counted[:, None]).float(), counted.float())

    @torch.no_grad()
    def cost(self, predicted: PredictedMasks, true: TrueMasks) -> tuple[Tensor, Tensor]:
        """Same as `DenseMaskLoss.cost`, on random points."""
        points = self._random(len(true.values), self.num_points, true.values)
        # Sampling is linear, so features can be sampled instead of masks, which are more.
        pixels = _sample(predicted.pixels.float(), points)
        logits = torch.einsum("tnqe,nel->tnql", predicted.embedding.float(), pixels)
        counted = _sample(true.counted[:, None], points, "nearest")[:, 0]
        return _pairwise(logits, _sample(true.values, points) * counted[:, None], counted)

    def sums(self, predicted: PredictedMasks, true: TrueMasks, matching: Matching) -> dict[str, Tensor]:
        """Same as `DenseMaskLoss.sums`, on random points.

        The pairs are picked out by index, for which a GPU is waited for.
        """
        sets, images = matching.query.shape[:2]
        # In the order of queries, as published, which decides whose points are whose.
        order = matching.query.where(matching.matched, predicted.embedding.shape[2]).argsort(dim=2, stable=True)
        number, image, place = matching.matched.gather(2, order).nonzero(as_tuple=True)
        pair = order[number, image, place]
        query = matching.query[number, image, pair]
        embedding = predicted.embedding[number, image, query].float()
        logits = torch.einsum("be,behw->bhw", embedding, predicted.pixels.float()[image])[:, None]
        values = true.values[image, pair % max(true.values.shape[1], 1)][:, None]
        counted = true.counted[image][:, None]
        with torch.no_grad():
            points = self._uncertain_points(logits, counted)
            weight = _sample(counted, points, "nearest")[:, 0]
            wanted = _sample(values, points)[:, 0] * weight
        entropy, dice = _paired(_sample(logits, points)[:, 0], wanted, weight)
        cell = number * images + image
        nothing = entropy.new_zeros(sets * images)
        return {
            "mask": nothing.index_add(0, cell, entropy).view(sets, images),
            "dice": nothing.index_add(0, cell, dice).view(sets, images),
        }

    def _uncertain_points(self, logits: Tensor, counted: Tensor) -> Tensor:
        """(B, L, 2) for mask logits (B, 1, h, w)."""
        pairs, certain = len(logits), int(self.importance * self.num_points)
        candidates = self._random(pairs, int(self.num_points * self.oversample), logits)
        doubt = -_sample(logits, candidates)[:, 0].abs()
        doubt = doubt.where(_sample(counted, candidates, "nearest")[:, 0] > 0, float("-inf"))
        chosen = doubt.topk(certain, dim=1).indices[..., None].expand(-1, -1, 2)
        return torch.cat([candidates.gather(1, chosen), self._random(pairs, self.num_points - certain, logits)], dim=1)

    def _random(self, count: int, points: int, like: Tensor) -> Tensor:
        return torch.rand(count, points, 2, generator=self.generator, device=like.device)


def _sample(maps: Tensor, points: Tensor, mode: str = "bilinear") -> Tensor:
    """Maps (N, E, h, w) at points (N, L, 2), x and y in 0..1 -> (N, E, L)."""
    if 0 in maps.shape:  # which grid_sample refuses; the gradient's path stays
        return maps.new_zeros(*maps.shape[:2], points.shape[1]) + maps.sum()
    return F.grid_sample(maps, (2.0 * points - 1.0)[:, :, None], mode=mode, align_corners=False)[..., 0]


def _pairwise(logits: Tensor, values: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (T, N, Q, L) with each of the values (N, G, L) -> (T, N, Q, G), twice."""
    true, weight = values.transpose(1, 2), counted[..., None]
    area = weight.sum(dim=1, keepdim=True)
    # -log of the probability is softplus(x) - x for 1 and softplus(x) for 0.
    entropy = (F.softplus(logits) @ weight - logits @ true) / area.clamp(min=1e-6)
    probability = logits.sigmoid()
    both, either = probability @ true, probability @ weight + true.sum(dim=1, keepdim=True)
    return entropy, 1.0 - (2.0 * both + 1.0) / (either + 1.0)


def _paired(logits: Tensor, values: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (..., L) with values (..., L) of the same place -> (...), twice."""
    entropy = (F.softplus(logits) * counted - logits * values).sum(dim=-1) / counted.sum(dim=-1).clamp(min=1e-6)
    probability = logits.sigmoid()
    both = (probability * values).sum(dim=-1)
    either = (probability * counted).sum(dim=-1) + values.sum(dim=-1)
    return entropy, 1.0 - (2.0 * both + 1.0) / (either + 1.0)
