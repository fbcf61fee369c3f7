"""Results of local attacks on a batch: of each pair of an image and a region of it, and the worst of each image.

Letters: N images of (3, H, W), RGB, 0..255, of C classes; M pairs; K candidates for the place of a patch.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import torch
from torch import Tensor

from part_robust.evaluation.attacked_batch import AttackedBatch, margins
from part_robust.evaluation.named_arrays import RegionArrays, RegionPictureArrays
from part_robust.evaluation.regions import Regions
from part_robust.utils.transfer import to_device, to_host


class RegionPairs:
    """The pairs of an image and a region of it, and the attacks' results on them, on the host; masks are on the device.

    Attributes:
        rows: int64 (M,), images of the batch.
        regions: int64 (M,).
        candidates: int64 (M,), number of places of a patch, 1 of other regions.
        corners: int64 (M, K, 2), of the candidates of patches, -1 of other regions.
        margin: (M,), of the class, the worst that was found.
        predictions: int64 (M,), there.
        chosen: int64 (M,), the candidate there.
        broken_by: int64 (M,), index of the attack, or -1.
        attacked: bool (M,), right without attack.
        zero_gradient: bool (M,), attacked, and without any gradient so far.
    """

    def __init__(self, groups: Sequence[Regions], batch: AttackedBatch, clean: Tensor, with_gradient: bool) -> None:
        """Set the pairs before any attack.

        Args:
            groups: one at least.
            batch: of their images.
            clean: (N, C), its logits.
            with_gradient: some attack uses gradients, so that one that is zero is to be noted.
        """
        self.rows = torch.cat([group.rows for group in groups])
        self.regions = torch.cat([group.regions for group in groups])
        self._masks = torch.cat([mask for group in groups for mask in group.masks])
        most = max(len(group.masks) for group in groups)
        candidates, corners, first, stride, start = [], [], [], [], 0
        for group in groups:
            size, count = len(group.rows), len(group.masks)
            candidates.append(torch.full((size,), count))
            corners.append(torch.full((size, most, 2), -1))
            if group.corners is not None:
                corners[-1][:, :count] = group.corners
            first.append(start + torch.arange(size))
            stride.append(torch.full((size,), size))
            start += size * count
        self.candidates, self.corners = torch.cat(candidates), torch.cat(corners)
        self._first, self._stride = torch.cat(first), torch.cat(stride)
        self.margin, wrong = margins(clean[self.rows], batch.labels[self.rows])
        self.predictions = clean.argmax(dim=1)[self.rows]
        self.chosen = torch.zeros_like(self.rows)
        self.broken_by = torch.full_like(self.rows, -1)
        self.attacked = ~wrong
        self.zero_gradient = self.attacked & with_gradient

    @property
    def remaining(self) -> Tensor:
        """Bool (M,), right without attack and under all attacks so far."""
        return self.attacked & (self.broken_by < 0)

    def masks_of(self, chunk: Tensor, candidate: Tensor) -> Tensor:
        """Masks bool (M, 1, H, W), on the device, of the candidates of some pairs; both int64 (M,)."""
        entry = self._first[chunk] + candidate * self._stride[chunk]
        return self._masks[to_device({"": entry}, self._masks.device)[""]]

    def update(self, chunk: Tensor, better: Tensor, margin: Tensor, predictions: Tensor, candidate: Tensor) -> None:
        """Keep the results of an attack on the pairs at `chunk`, int64 (M,), that are `better`, bool (M,)."""
        index = chunk[better]
        self.margin[index], self.predictions[index] = margin[better], predictions[better]
        self.chosen[index] = candidate[better]

    def arrays(self, batch: AttackedBatch, right_greyed: Tensor) -> RegionArrays:
        """Return what the journal keeps."""
        corner = self.corners[torch.arange(len(self.rows)), self.chosen]
        return RegionArrays(
            image_id=batch.keys[self.rows].numpy(),
            region=self.regions.numpy(),
            broken_by=self.broken_by.numpy(),
            attacked=self.attacked.numpy(),
            zero_gradient=self.zero_gradient.numpy(),
            right_greyed=right_greyed.numpy(),
            top=corner[:, 0].numpy(),
            left=corner[:, 1].numpy(),
        )


class WorstOfImages:
    """The worst result of each image of the batch, over its regions.

    Attributes:
        images: (N, 3, H, W), on the device.
        broken_by: int64 (N,), on the host: the first attack, in their order, that broke the image in any region.
        fooled: by attack, bool (N,).
    """

    def __init__(self, batch: AttackedBatch, clean: Tensor, names: Collection[str]) -> None:
        """`clean` (N, C) are the logits of the batch, `names` those of the attacks."""
        self.images = batch.images
        self.margin, wrong = margins(clean, batch.labels)
        self.broken_by = torch.full_like(batch.labels, -1)
        self.fooled = {name: torch.zeros_like(wrong) for name in names}

    def update(self, name: str, index: int, rows: Tensor, images: Tensor, margin: Tensor, fooled: Tensor) -> None:
        """Take in the results (M, 3, H, W) of the `index`-th attack on the images at `rows`, which may repeat."""
        # The worst of each image comes last.
        order = torch.from_numpy(np.lexsort((margin.numpy(), fooled.numpy(), rows.numpy())))
        last = order[torch.diff(rows[order], append=rows.new_tensor([-1])) != 0]
        broken = self.broken_by[rows[last]] >= 0
        worse = (fooled[last] & ~broken) | ((fooled[last] == broken) & (margin[last] > self.margin[rows[last]]))
        taken = last[worse]
        self.margin[rows[taken]] = margin[taken]
        place = to_device({"to": rows[taken], "from": taken}, images.device)
        self.images = self.images.index_copy(0, place["to"], images[place["from"]])
        newly = rows[fooled]
        self.fooled[name][newly] = True
        self.broken_by[newly] = torch.where(self.broken_by[newly] < 0, index, self.broken_by[newly])


class RegionPictures:
    """The attacked images of the pairs of a few images that are right without attack."""

    def __init__(self, batch: AttackedBatch, pairs: RegionPairs, pictured: Collection[int]) -> None:
        """`pictured` are image ids."""
        attacked = pairs.attacked.nonzero()[:, 0].tolist()
        chosen = [pair for pair in attacked if int(batch.keys[pairs.rows[pair]]) in pictured]
        self.batch, self.pairs, self.chosen = batch, pairs, torch.tensor(chosen, dtype=torch.int64)
        self.place = torch.full_like(pairs.rows, -1).index_copy(0, self.chosen, torch.arange(len(chosen)))
        self.attacked = batch.images[batch.on_device(pairs.rows[self.chosen])]

    def update(self, pairs: Tensor, images: Tensor, rows: Tensor) -> None:
        """Keep the images at `rows` of (M, 3, H, W), results of these pairs; both int64."""
        own = (self.place[pairs] >= 0).nonzero()[:, 0]
        if len(own):
            place = to_device({"to": self.place[pairs[own]], "from": rows[own]}, images.device)
            self.attacked = self.attacked.index_copy(0, place["to"], images[place["from"]])

    def arrays(self, clean: Tensor, broken_alone: bool = False) -> RegionPictureArrays | None:
        """Return what the journal keeps; None for nothing.

        Args:
            clean: (N, C), logits of the batch.
            broken_alone: leave out pairs that no attack has broken.
        """
        kept = ((self.pairs.broken_by[self.chosen] >= 0) | (not broken_alone)).nonzero()[:, 0]
        if not len(kept):
            return None
        chosen, attacked = self.chosen[kept], self.attacked[self.batch.on_device(kept)]
        rows = self.pairs.rows[chosen]
        images = {
            "clean": self.batch.images[self.batch.on_device(rows)].round().clamp(0, 255).byte(),
            "attacked": attacked.round().clamp(0, 255).byte(),
            "mask": self.pairs.masks_of(chosen, self.pairs.chosen[chosen])[:, 0],
        }
        return RegionPictureArrays(
            image_id=self.batch.keys[rows].numpy(),
            region=self.pairs.regions[chosen].numpy(),
            label=self.batch.labels[rows].numpy(),
            before=clean.argmax(dim=1)[rows].numpy(),
            after=self.pairs.predictions[chosen].numpy(),
            **{name: tensor.numpy() for name, tensor in to_host(images).items()},
        )
