"""A tier of local attacks: the class under an attacker who may change one region of the image alone.

Letters: N images of (3, H, W), RGB, 0..255; M of them; K candidates for the place of a patch.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from torch import Tensor

from part_robust.attacks import get_objective
from part_robust.attacks.attackable import AttackInputs
from part_robust.attacks.class_losses import class_margin
from part_robust.configured_attacks import build_model_attack
from part_robust.evaluation.attacked_batch import AttackedBatch, margins
from part_robust.evaluation.journal import BatchArrays
from part_robust.evaluation.named_arrays import RegionArrays, RegionPictureArrays
from part_robust.evaluation.pictures import picture_sample
from part_robust.evaluation.regions import REGIONS, Regions, labelled_regions, patch_regions
from part_robust.evaluation.tiers import Tier, TierResult
from part_robust.utils.errors import UserError
from part_robust.utils.transfer import to_device, to_host

# Images of which every attacked region is kept as a picture.
PICTURED_IMAGES = 8


@dataclass(frozen=True, eq=False)
class LocalTier(Tier):
    """Attacks on the class inside regions of the image.

    Every region of an image is attacked by itself, by one attack after the other until one breaks it. The tier's own
    number is the worst case over the regions.

    Attributes:
        regions: of `REGIONS`, which are attacked.
        patch_sides: pixels.
        patch_positions: places that are tried for each patch: the first attack runs at all of them, the others at the
            one where it got farthest.
        grey: RGB, 0..255, with which regions are covered to see what carries the class.
    """

    regions: Sequence[str] = REGIONS
    patch_sides: Sequence[int] = ()
    patch_positions: int = 4
    grey: Sequence[float] = (127.5, 127.5, 127.5)

    @classmethod
    def from_config(cls, cfg: CfgNode, name: str, specs: Mapping[str, CfgNode]) -> LocalTier:
        """Build the tier from TEST.LOCAL.

        Args:
            cfg: complete.
            name: of the tier, which ends the names of its attacks, too: elsewhere they have other threat models.
            specs: of the attacks, by name.

        Raises:
            UserError: there is nothing to attack, or an attack does not aim at the class.
        """
        node, attacks = cfg.TEST.LOCAL, {}
        on_parts = [attack for attack, spec in specs.items() if get_objective(spec.OBJECTIVE).needs_parts]
        if on_parts:
            raise UserError(
                f"TEST.TIERS.{name} must name attacks on the class, got {on_parts[0]}: use one that maximises a loss "
                "of the class, such as apgd_ce"
            )
        if not cfg.MODEL.PART_CLASSIFIER.HEAD:
            raise UserError(f"tier {name!r} attacks the class and this model has no class head: use TEST.TIER parts")
        sides = sorted({max(round(share * cfg.INPUT.SIZE), 1) for share in node.PATCH_SIDES})
        if list(node.REGIONS) == ["patch"] and not sides:
            raise UserError("TEST.LOCAL.PATCH_SIDES must name a side for TEST.LOCAL.REGIONS patch, got none")
        for attack, spec in specs.items():
            local = spec.clone()
            local.NORM, local.EPS = node.NORM, float(node.EPS)
            attacks[f"{attack}_{name}"] = build_model_attack(cfg, local)
        for built in attacks.values():
            built.record_history = built.uses_gradient
        return cls(
            name,
            "local",
            attacks,
            regions=tuple(node.REGIONS),
            patch_sides=tuple(sides),
            patch_positions=node.PATCH_POSITIONS,
            grey=tuple(cfg.MODEL.PIXEL_MEAN),
        )

    @property
    def objective(self) -> str:
        return "class accuracy, worst case per image over the attacked regions"

    def describe(self) -> dict[str, Any]:
        """Return which regions are attacked, and how patches are placed."""
        return {
            "regions": list(self.regions),
            "patch_sides": list(self.patch_sides),
            "patch_positions": self.patch_positions,
            "grey": list(self.grey),
        }

    def run(self, batch: AttackedBatch, note: Callable[[str], None], sample: Collection[int]) -> TierResult:
        """Attack every region of every image of a batch that is right without attack.

        Raises:
            ValueError: the model has no classes to attack.
        """
        if not batch.has_classes:
            raise ValueError(f"tier {self.name!r} measures {self.objective}, and this model has no class head")
        found = _Found(batch, self)
        pictured = picture_sample(sample, PICTURED_IMAGES) if sample else frozenset()
        grey = batch.images.new_tensor(self.grey).view(3, 1, 1)
        for group in self._groups(batch):
            result = _attack(self, batch, found.wrong, group, note)
            greyed = None if group.corners is not None else _right_covered(batch, group, grey)
            found.add(group, result, greyed, pictured)
        return found.result()

    def _groups(self, batch: AttackedBatch) -> Iterator[Regions]:
        device, parts = batch.images.device, batch.num_parts
        yield from labelled_regions(batch.items, parts, self.regions, device)
        if "patch" in self.regions and self.patch_sides:
            importance = _importance(batch, self.threat_model.norm)
            keys = to_device({"": batch.keys}, device)[""]
            for number, side in enumerate(self.patch_sides):
                group = patch_regions(importance, batch.padding, keys, parts + 2 + number, side, self.patch_positions)
                if group is not None:
                    yield group


def _importance(batch: AttackedBatch, norm: str) -> Tensor:
    """(N, H, W), what the margin gains at each pixel along the steepest ascent, to first order."""
    images = batch.images.detach().clone().requires_grad_(True)
    logits = AttackInputs(batch.inner, batch.items, images, batch.padding).class_forward()(images)
    batch.forwards += len(images)
    if not logits.requires_grad:
        return torch.zeros_like(images[:, 0])
    labels = to_device({"": batch.labels}, images.device)[""]
    (gradient,) = torch.autograd.grad(class_margin(logits, labels).sum(), images)
    return gradient.abs().sum(dim=1) if norm == "linf" else gradient.square().sum(dim=1)


@torch.no_grad()
def _right_covered(batch: AttackedBatch, group: Regions, grey: Tensor) -> Tensor:
    """Return bool (M,), on the host: the class is right where the region is grey."""
    rows = batch.on_device(group.rows)
    covered = batch.images.index_copy(0, rows, torch.where(group.masks[0], grey, batch.images[rows]))
    return ~margins(batch.class_logits(covered, group.rows), batch.labels[group.rows])[1]


@dataclass
class _GroupResult:
    """Result of all attacks on one region of each of M images.

    Attributes:
        images: (M, 3, H, W), the worst found; the originals of images that are wrong already.
        margin: (M,), of the class on `images`, on the host.
        predictions: int64 (M,), on `images`, on the host.
        broken_by: int64 (M,), on the host.
        chosen: int64 (M,), the candidate at which it got farthest.
        zero_gradient: bool (M,).
        fooled: by attack, bool (M,).
    """

    images: Tensor
    margin: Tensor
    predictions: Tensor
    broken_by: Tensor
    chosen: Tensor
    zero_gradient: Tensor
    fooled: dict[str, Tensor] = field(default_factory=dict)


def _attack(
    tier: LocalTier, batch: AttackedBatch, wrong: Tensor, group: Regions, note: Callable[[str], None]
) -> _GroupResult:
    """Attack one region of each image of the group that is right without attack."""
    rows = group.rows
    clean = torch.stack([batch.clean[row]["class_logits"] for row in rows.tolist()])
    remaining = ~wrong[rows]
    result = _GroupResult(
        images=batch.images[batch.on_device(rows)],
        margin=margins(clean, batch.labels[rows])[0],
        predictions=clean.argmax(dim=1),
        broken_by=torch.full_like(rows, -1),
        chosen=torch.zeros_like(rows),
        zero_gradient=remaining & any(attack.uses_gradient for attack in tier.attacks.values()),
        fooled={name: torch.zeros_like(remaining) for name in tier.attacks},
    )
    masks = torch.stack(list(group.masks))
    for index, (name, attack) in enumerate(tier.attacks.items()):
        for number in range(len(masks)) if index == 0 else [-1]:
            left = remaining.nonzero()[:, 0]
            if not len(left):
                return result
            note(f"{tier.name}, {name} in a region of {len(left)} of {len(batch)} images")
            candidate = torch.full_like(left, number) if index == 0 else result.chosen[left]
            place = to_device({"candidate": candidate, "left": left, "rows": rows[left]}, masks.device)
            attacked = batch.attack_rows(name, attack, rows[left], mask=masks[place["candidate"], place["left"]])
            if attack.uses_gradient:
                result.zero_gradient[left] &= to_host({"": attacked.zero_gradient})[""]
            scored = batch.images.index_copy(0, place["rows"], attacked.images)
            logits = batch.class_logits(scored, rows[left])
            margin, fooled = margins(logits, batch.labels[rows[left]])
            take = fooled | (margin > result.margin[left])
            if index == 0 and number == 0:
                take = torch.ones_like(take)  # the image itself is not a place for the patch
            taken = left[take]
            on_device = to_device({"taken": taken, "take": take.nonzero()[:, 0]}, masks.device)
            result.images = result.images.index_copy(0, on_device["taken"], attacked.images[on_device["take"]])
            result.margin[taken], result.chosen[taken] = margin[take], candidate[take]
            result.predictions[taken] = logits.argmax(dim=1)[take]
            result.fooled[name][left] |= fooled
            result.broken_by[left[fooled]] = index
            remaining[left[fooled]] = False
    return result


class _Found:
    """Collects the results of all regions of a batch."""

    def __init__(self, batch: AttackedBatch, tier: LocalTier) -> None:
        self.batch, self.tier = batch, tier
        clean = torch.stack([output["class_logits"] for output in batch.clean])
        self.margin, self.wrong = margins(clean, batch.labels)
        self.clean_prediction = clean.argmax(dim=1)
        self.images = batch.images
        self.broken_by = torch.full_like(batch.labels, -1)
        self.fooled = {name: torch.zeros_like(self.wrong) for name in tier.attacks}
        self.regions: list[RegionArrays] = []
        self.pictures: list[RegionPictureArrays] = []

    def add(self, group: Regions, result: _GroupResult, greyed: Tensor | None, pictured: Collection[int]) -> None:
        rows = group.rows
        before, after = self.broken_by[rows] >= 0, result.broken_by >= 0
        worse = (after & ~before) | ((after == before) & (result.margin > self.margin[rows]))
        take = worse.nonzero()[:, 0]
        self.margin[rows[take]] = result.margin[take]
        place = to_device({"to": rows[take], "from": take}, self.images.device)
        self.images = self.images.index_copy(0, place["to"], result.images[place["from"]])
        first = torch.where(before, torch.minimum(self.broken_by[rows], result.broken_by), result.broken_by)
        self.broken_by[rows] = torch.where(after, first, self.broken_by[rows])
        for name, fooled in result.fooled.items():
            self.fooled[name][rows] |= fooled
        corners = torch.full((len(rows), 2), -1) if group.corners is None else _corner_of(group, result)
        right = torch.full_like(rows, -1) if greyed is None else greyed.long()
        self.regions.append(
            RegionArrays(
                image_id=self.batch.keys[rows].numpy(),
                region=group.regions.numpy(),
                broken_by=result.broken_by.numpy(),
                attacked=(~self.wrong[rows]).numpy(),
                zero_gradient=result.zero_gradient.numpy(),
                right_greyed=right.numpy().astype(np.int8),
                top=corners[:, 0].numpy(),
                left=corners[:, 1].numpy(),
            )
        )
        chosen = [row for row, image_id in enumerate(self.batch.keys[rows].tolist()) if image_id in pictured]
        if chosen:
            self.pictures.append(self._picture(group, result, torch.tensor(chosen)))

    def _picture(self, group: Regions, result: _GroupResult, chosen: Tensor) -> RegionPictureArrays:
        rows, batch = group.rows[chosen], self.batch
        place = to_device({"rows": rows, "chosen": chosen, "candidate": result.chosen[chosen]}, batch.images.device)
        masks = torch.stack(list(group.masks))[place["candidate"], place["chosen"]][:, 0]
        host = to_host(
            {
                "clean": batch.images[place["rows"]].round().clamp(0, 255).byte(),
                "attacked": result.images[place["chosen"]].round().clamp(0, 255).byte(),
                "mask": masks,
            }
        )
        return RegionPictureArrays(
            image_id=batch.keys[rows].numpy(),
            region=group.regions[chosen].numpy(),
            label=batch.labels[rows].numpy(),
            before=self.clean_prediction[rows].numpy(),
            after=result.predictions[chosen].numpy(),
            **{name: tensor.numpy() for name, tensor in host.items()},
        )

    def result(self) -> TierResult:
        arrays: BatchArrays = {}
        for kind, found in ((RegionArrays, self.regions), (RegionPictureArrays, self.pictures)):
            if found:
                fields = vars(found[0])
                together = {name: np.concatenate([vars(entry)[name] for entry in found]) for name in fields}
                arrays |= kind(**together).write(self.tier.name)
        outputs = self.batch.outputs(self.images)
        return TierResult(self.images, outputs, self.broken_by, self.fooled, {}, {}, arrays)


def _corner_of(group: Regions, result: _GroupResult) -> Tensor:
    """(M, 2), the corner of the candidate at which the attacks got farthest."""
    assert group.corners is not None
    return group.corners[torch.arange(len(group.rows)), result.chosen]
