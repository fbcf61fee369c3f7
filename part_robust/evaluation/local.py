"""A tier of local attacks: the class under an attacker who may change one region of the image alone.

Letters: N images of (3, H, W), RGB, 0..255; M of them; K candidates for the place of a patch.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import Tensor

from part_robust.attacks import get_objective
from part_robust.attacks.attackable import AttackInputs
from part_robust.attacks.class_losses import class_margin
from part_robust.attacks.model_view import attack_gradient
from part_robust.configured_attacks import build_model_attack
from part_robust.evaluation.attacked_batch import AttackedBatch, margins
from part_robust.evaluation.pictures import picture_sample
from part_robust.evaluation.region_results import RegionPairs, RegionPictures, WorstOfImages
from part_robust.evaluation.regions import REGIONS, Regions, labelled_regions, patch_regions
from part_robust.evaluation.tiers import Tier, TierResult
from part_robust.layers.constants import constant
from part_robust.utils.errors import UserError
from part_robust.utils.transfer import to_device, to_host

# Images of which every attacked region is kept as a picture.
PICTURED_IMAGES = 8
# Relative differences of margins up to this are rounding.
ROUNDING = 1e-5


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
        grey: RGB, 0..255, with which regions are covered to see what carries the class: the mean of ImageNet's images,
            for every model alike.
    """

    regions: Sequence[str] = REGIONS
    patch_sides: Sequence[int] = ()
    patch_positions: int = 4
    grey: Sequence[float] = (123.675, 116.28, 103.53)

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
        clean = torch.stack([output["class_logits"] for output in batch.clean])
        worst = WorstOfImages(batch, clean, self.attacks)
        groups, arrays = list(self._groups(batch)), {}
        if groups:
            pairs, pictures = self.attack_regions(batch, groups, clean, worst, note, sample)
            arrays = pairs.arrays(batch, self._right_covered(batch, pairs)).write(self.name)
            if (found := pictures.arrays(clean)) is not None:
                arrays |= found.write(self.name)
        return TierResult(worst.images, batch.outputs(worst.images), worst.broken_by, worst.fooled, {}, {}, arrays)

    def attack_regions(
        self,
        batch: AttackedBatch,
        groups: Sequence[Regions],
        clean: Tensor,
        worst: WorstOfImages,
        note: Callable[[str], None],
        sample: Collection[int],
    ) -> tuple[RegionPairs, RegionPictures]:
        """Attack regions of the images of a batch that are right without attack.

        Args:
            batch: of their images.
            groups: one at least.
            clean: (N, C), logits of the batch.
            worst: takes the results in.
            note: callback, receives a progress message before each attack.
            sample: ids of images that may become pictures.
        """
        pairs = RegionPairs(groups, batch, clean, any(attack.uses_gradient for attack in self.attacks.values()))
        pictures = RegionPictures(batch, pairs, picture_sample(sample, PICTURED_IMAGES) if sample else frozenset())
        self._attack(batch, pairs, worst, pictures, note)
        return pairs, pictures

    def _attack(
        self,
        batch: AttackedBatch,
        pairs: RegionPairs,
        worst: WorstOfImages,
        pictures: RegionPictures,
        note: Callable[[str], None],
    ) -> None:
        """Run one attack after the other on the pairs that remain, which share batches whatever their region."""
        for index, (name, attack) in enumerate(self.attacks.items()):
            for number in range(int(pairs.candidates.max())) if index == 0 else [-1]:
                left = (pairs.remaining & (pairs.candidates > number)).nonzero()[:, 0]
                for chunk in left.split(len(batch)) if len(left) else ():
                    note(f"{self.name}, {name} on {len(left)} of {len(pairs.rows)} regions of {len(batch)} images")
                    rows, candidate = pairs.rows[chunk], pairs.chosen[chunk]
                    if index == 0:
                        candidate = torch.full_like(chunk, number)
                    attacked = batch.attack_rows(name, attack, rows, mask=pairs.masks_of(chunk, candidate))
                    logits = batch.logits_of(attacked.images, rows)
                    margin, fooled = margins(logits, batch.labels[rows])
                    # The image itself is not a place for the patch. Where an attack gets nowhere at any place, the
                    # first is kept, whatever the rounding, which differs between batches.
                    before = pairs.margin[chunk]
                    better = fooled | (margin > before + ROUNDING * (1 + before.abs())) | (index == number == 0)
                    pairs.update(chunk, better, margin, logits.argmax(dim=1), candidate)
                    pairs.broken_by[chunk[fooled]] = index
                    if attack.uses_gradient:
                        pairs.zero_gradient[chunk] &= to_host({"": attacked.zero_gradient})[""]
                    worst.update(name, index, rows, attacked.images, margin, fooled)
                    pictures.update(chunk[better], attacked.images, better.nonzero()[:, 0])

    def _right_covered(self, batch: AttackedBatch, pairs: RegionPairs) -> Tensor:
        """Return int8 (M,), on the host: whether the class is right where the region is grey, -1 of patches."""
        grey = constant(tuple(self.grey), batch.images.dtype, batch.images.device).view(3, 1, 1)
        right = torch.full(pairs.rows.shape, -1, dtype=torch.int8)
        left = (pairs.corners[:, 0, 0] < 0).nonzero()[:, 0]
        for chunk in left.split(len(batch)) if len(left) else ():
            rows = pairs.rows[chunk]
            masks = pairs.masks_of(chunk, torch.zeros_like(chunk))
            covered = torch.where(masks, grey, batch.images[batch.on_device(rows)])
            right[chunk] = (~margins(batch.logits_of(covered, rows), batch.labels[rows])[1]).to(torch.int8)
        return right

    def _groups(self, batch: AttackedBatch) -> Iterator[Regions]:
        device, parts = batch.images.device, batch.num_parts
        yield from labelled_regions(batch.items, parts, self.regions, device)
        if "patch" in self.regions and self.patch_sides:
            first = next(iter(self.attacks.values()))
            with attack_gradient(batch.inner, first.full_gradient):
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
    return gradient.square().sum(dim=1) if norm == "l2" else gradient.abs().sum(dim=1)
