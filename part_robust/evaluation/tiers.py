"""How strong an evaluation is: sets of attacks, and what each makes of a batch.

Letters: N images of (3, H, W), RGB, 0..255; A attacks of a tier.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from part_robust.attacks import Attack, ThreatModel
from part_robust.attacks.state import where
from part_robust.evaluation.attacked_batch import AttackedBatch, LabelCounts, label_counts, margins
from part_robust.evaluation.journal import BatchArrays

KINDS = ("full", "class", "parts", "local")


@dataclass(frozen=True)
class RoundSettings:
    """Settings of the rounds that follow a tier's first pass over all images (evaluation/rounds.py).

    Attributes:
        restart_gain: points of all images; attacks with random starts restart until a further restart breaks less. 0:
            they do not restart. Of a tier of local attacks those images count of which it breaks a region.
        sampled: names of attacks that run on a random sample of the images that all others left, not in the first pass.
        bound: points of all images that `sampled` might still break outside of the sample when it is large enough.
        added: attacks that run in restarts alone, by name; cheap ones, which restart first. Where they never break
            enough, the tier's own attacks do not restart.
    """

    restart_gain: float = 0.0
    sampled: tuple[str, ...] = ()
    bound: float = 1.0
    added: Mapping[str, Attack] = field(default_factory=dict)

    def describe(self) -> dict[str, Any]:
        """Return the settings, without `added` where there is none, as earlier versions described them."""
        described = asdict(replace(self, added={}))
        del described["added"]
        added = {name: attack.describe() for name, attack in self.added.items()}
        return described | ({"added_first": added} if added else {})


@dataclass(frozen=True, eq=False)
class Tier:
    """A set of attacks whose worst case is reported.

    Attributes:
        name: in the config and in results.
        kind: "full": every attack on every image (the thesis, and ATTACK.EVAL). "class": the worst case per image for
            the class; only images that are still right are attacked further. "parts": the worst case per image for
            pixel accuracy, every attack on every image with part labels. "local": of a `LocalTier`.
        attacks: by name, cheap ones first.
        rounds: what follows the first pass, for tiers of kind "class" and "local" alone; None for nothing.
    """

    name: str
    kind: str
    attacks: Mapping[str, Attack]
    rounds: RoundSettings | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"tier {self.name!r}: kind must be one of {KINDS}, is {self.kind!r}")
        if not self.attacks:
            raise ValueError(f"tier {self.name!r} has no attacks: give TEST.TIERS.{self.name} at least one")
        if self.rounds and self.kind not in ("class", "local"):
            raise ValueError(f"tier {self.name!r} must attack the class worst case per image to have rounds")
        if self.kind == "full" and len(self.attacks) > 1 and not self.measures_class:
            raise ValueError(f"tier {self.name!r} is of kind full: of attacks on the parts it can have only one")
        radii = {(attack.threat_model.norm, attack.threat_model.eps) for attack in self.attacks.values()}
        if len(radii) > 1:
            raise ValueError(
                f"the attacks of tier {self.name!r} have different threat models ({sorted(radii)}), so there is no "
                "worst case over them: set TEST.EPS and TEST.NORM, or the NORM and EPS of each"
            )

    @property
    def threat_model(self) -> ThreatModel:
        """Threat model of the tier, which all its attacks share."""
        return next(iter(self.attacks.values())).threat_model

    @property
    def first_pass(self) -> Mapping[str, Attack]:
        """Attacks on all images, by name; the others are on a sample."""
        sampled = self.rounds.sampled if self.rounds else ()
        return {name: attack for name, attack in self.attacks.items() if name not in sampled}

    @property
    def measures_class(self) -> bool:
        """Whether the tier's number is the class accuracy; otherwise its attacks maximise a loss of the parts alone."""
        objectives = [attack.objective for attack in self.attacks.values()]
        return self.kind in ("class", "local") or (
            self.kind == "full" and any(found.needs_class or not found.needs_parts for found in objectives)
        )

    @property
    def is_single_attack(self) -> bool:
        """Whether its results are those of one attack, whose name it has."""
        return self.kind != "parts" and list(self.attacks) == [self.name]

    @property
    def objective(self) -> str:
        """Return the description of the objective for the record."""
        measured = "class accuracy" if self.measures_class else "pixel accuracy"
        if self.kind == "full":
            return f"{measured}, every attack on every image, last word to the worst restart"
        sampled = self.rounds.sampled if self.rounds else ()
        on_sample = f", {' and '.join(sampled)} on a random sample alone" if sampled else ""
        return f"{measured}, worst case per image{on_sample}"

    def run(self, batch: AttackedBatch, note: Callable[[str], None], sample: Collection[int]) -> TierResult:
        """Same as `run_tier`; `sample` are ids of images that may become pictures."""
        return run_tier(self, batch, note)


@dataclass
class TierResult:
    """Result of a tier on a batch.

    Attributes:
        images: (N, 3, H, W), of each image the one that breaks it, or else the strongest.
        outputs: the model's, of `images`.
        broken_by: int64 (N,), index of the attack that broke the image, or whose result is the worst for tier "parts";
            -1 for none: wrong without any attack, still right, or (parts) worst without any attack.
        fooled: bool (N,) by attack, the class is wrong after it; False where the attack was not run.
        counts: of the parts, by attack, for tier "parts" alone.
        outputs_by_attack: outputs of the model, by attack, for tier "parts" alone.
        arrays: further arrays of the batch in the journal, by name.
    """

    images: Tensor
    outputs: list[dict]
    broken_by: Tensor
    fooled: dict[str, Tensor]
    counts: dict[str, LabelCounts]
    outputs_by_attack: dict[str, list[dict]]
    arrays: BatchArrays = field(default_factory=dict)


def run_tier(tier: Tier, batch: AttackedBatch, note: Callable[[str], None]) -> TierResult:
    """Run the attacks of a tier on a batch, and keep the worst case of each image.

    Args:
        tier: what to run.
        batch: the images.
        note: callback, receives a progress message before each attack.

    Raises:
        ValueError: the model has no classes, or no parts, to attack.
    """
    if not (batch.has_classes if tier.measures_class else batch.has_parts):
        missing = "class head" if tier.measures_class else "parts"
        raise ValueError(f"tier {tier.name!r} measures {tier.objective}, and this model has no {missing}")
    if tier.kind == "full" and len(tier.attacks) == 1:
        return _one_attack(tier, batch, note)
    return (_worst_parts if tier.kind == "parts" else _worst_class)(tier, batch, note)


def _one_attack(tier: Tier, batch: AttackedBatch, note: Callable[[str], None]) -> TierResult:
    """Attack every image; there is nothing to choose between, so the outputs that are evaluated are all it takes."""
    ((name, attack),) = tier.attacks.items()
    note(tier.name if tier.is_single_attack else f"{tier.name}, {name}")
    images = batch.attack(name, attack, torch.ones_like(batch.labels, dtype=torch.bool)).images
    outputs, broken_by, fooled = batch.outputs(images), torch.full_like(batch.labels, -1), {}
    if batch.has_classes:
        wrong = margins(torch.stack([output["class_logits"] for output in outputs]), batch.labels)[1]
        broken_by, fooled = broken_by.masked_fill(wrong, 0), {name: wrong}
    return TierResult(images, outputs, broken_by, fooled, {}, {})


def _worst_class(tier: Tier, batch: AttackedBatch, note: Callable[[str], None]) -> TierResult:
    everything = tier.kind == "full"
    clean = torch.stack([output["class_logits"] for output in batch.clean])
    worst_margin, wrong = margins(clean, batch.labels)
    remaining = torch.ones_like(wrong) if everything else ~wrong
    broken = torch.zeros_like(wrong) if everything else wrong
    images, broken_by = batch.images, torch.full_like(batch.labels, -1)
    verdicts = {name: torch.zeros_like(wrong) for name in tier.attacks}
    for index, (name, attack) in enumerate(tier.first_pass.items()):
        rows = remaining.nonzero()[:, 0]
        if not len(rows):
            break
        note(f"{tier.name}, {name} on {len(rows)} of {len(batch)} images")
        outcome = batch.attack(name, attack, remaining)
        # Evaluated again instead of trusting the attack: one scale for attacks that maximise different losses.
        margin, fooled = margins(batch.class_logits(outcome.images, rows), batch.labels[rows])
        first = everything and index == 0  # the image itself is not a result in this protocol
        take = (fooled & ~broken[rows]) | ((fooled == broken[rows]) & (margin > worst_margin[rows])) | first
        taken = torch.zeros_like(wrong).index_fill(0, rows[take], True)
        images = where(batch.on_device(taken), outcome.images, images)
        worst_margin[taken] = margin[take]
        newly = rows[fooled & ~broken[rows]]
        broken_by[newly] = index
        broken[newly] = True
        verdicts[name][rows] = fooled
        if not everything:
            remaining[newly] = False
    return TierResult(images, batch.outputs(images), broken_by, verdicts, {}, {})


def _worst_parts(tier: Tier, batch: AttackedBatch, note: Callable[[str], None]) -> TierResult:
    clean = label_counts(batch.clean, batch.items, batch.num_parts)
    labelled = clean.pixels > 0
    images, outputs = batch.images, list(batch.clean)
    broken_by, worst = torch.full_like(batch.labels, -1), clean.right.clone()
    verdicts, counts, outputs_by_attack = {}, {}, {}
    for index, (name, attack) in enumerate(tier.attacks.items()):
        note(f"{tier.name}, {name}")
        outcome = batch.attack(name, attack, labelled)
        outputs_by_attack[name] = batch.outputs(outcome.images)
        counts[name] = label_counts(outputs_by_attack[name], batch.items, batch.num_parts)
        if batch.has_classes:
            logits = torch.stack([output["class_logits"] for output in outputs_by_attack[name]])
            verdicts[name] = margins(logits, batch.labels)[1] & outcome.done
        take = counts[name].right < worst
        worst = torch.where(take, counts[name].right, worst)
        broken_by = torch.where(take, index, broken_by)
        images = where(batch.on_device(take), outcome.images, images)
        for row in take.nonzero()[:, 0].tolist():
            outputs[row] = outputs_by_attack[name][row]
    return TierResult(images, outputs, broken_by, verdicts, counts, outputs_by_attack)
