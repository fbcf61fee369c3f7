"""Rounds of a tier after its first pass over all images: restarts, and expensive attacks on a random sample.

Which round follows is decided from the merged results of all images before it, so it is the same for any batch size,
number of processes and after any interruption.

Letters: N images, M of them stand (are right, and not broken).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from detectron2.evaluation import DatasetEvaluators
from torch import nn

from part_robust.attacks import Attack, attack_mode
from part_robust.attacks.noise import make_keys
from part_robust.evaluation.adversarials import save_adversarials
from part_robust.evaluation.attacked_batch import AttackedBatch
from part_robust.evaluation.batch_arrays import attack_arrays, describe_batch
from part_robust.evaluation.journal import BatchArrays
from part_robust.evaluation.local import LocalTier
from part_robust.evaluation.local_rounds import restart_regions, with_regions
from part_robust.evaluation.merged import BROKEN, Merged, Round
from part_robust.evaluation.named_arrays import AttackArrays, ClassArrays, CostArrays, TierArrays
from part_robust.evaluation.plan import Plan
from part_robust.evaluation.predictions import replace_predictions
from part_robust.evaluation.progress import Progress
from part_robust.evaluation.sequential_bound import SequentialSample
from part_robust.evaluation.tiers import Tier, TierResult, run_tier

# Of the order in which images are drawn into samples; fixed, so that a sample cannot be drawn until it pleases.
ORDER_SEED = 1
CONFIDENCE = 0.95


@dataclass(frozen=True)
class BatchSetting:
    """Everything that is the same for all batches of an evaluation.

    Attributes:
        plan: what to do.
        model: part classifier.
        evaluators: of `build_evaluator`.
        adversarials: folder for adversarial images; must be given if the plan wants them.
        predictions: folder for predictions as files; None: none are written.
    """

    plan: Plan
    model: nn.Module
    evaluators: DatasetEvaluators
    adversarials: Path | None = None
    predictions: Path | None = None


@dataclass(frozen=True)
class Executed:
    """An attack of a tier, in the order in which they ran; `TierArrays.broken_by` counts them.

    Attributes:
        name: in the record.
        arrays: name of its results among the arrays of batches.
        attack: that ran.
        restart: 1 for the first restart after the first pass; 0: none.
        sampled: it ran on a sample alone.
    """

    name: str
    arrays: str
    attack: Attack
    restart: int = 0
    sampled: bool = False


def next_round(plan: Plan, merged: Merged) -> Round | None:
    """Return the round that follows those of `merged.rounds`; None if none does."""
    for tier in plan.tiers:
        if tier.rounds:
            found = _next_restart(tier, merged) or _next_sample(tier, merged)
            if found:
                return replace(found, number=len(merged.rounds) + 1)
    return None


def restart_stages(tier: Tier) -> list[dict[str, Attack]]:
    """Return the attacks that restart together, by name: those added for restarts, and the tier's own, if any.

    Its own are those that follow a gradient from a random point. A black-box attack searches at random all the time, so
    another start changes little and costs thousands of queries.
    """
    own = {name: attack for name, attack in tier.first_pass.items() if attack.uses_gradient and attack.starts_randomly}
    return [dict(stage) for stage in (tier.rounds.added if tier.rounds else {}, own) if stage]


def next_stage(stages: int, done: Sequence[tuple[int, bool]]) -> int | None:
    """Return which stage restarts next, or None at the end.

    A stage restarts until it gains too little, and then the stage behind it; after any gain the first one restarts. The
    expensive stages run only if the first one has gained: without a gain there, another start makes no difference.

    Args:
        stages: how many there are, cheap ones first.
        done: of every restart until now, its stage and whether it gained enough.
    """
    if not stages or not done:
        return 0 if stages else None
    stage, gained = done[-1]
    if gained:
        return 0
    return stage + 1 if stage + 1 < stages and any(gain for _, gain in done) else None


def executed_attacks(tier: Tier, merged: Merged) -> list[Executed]:
    """Return the attacks of a tier in the order in which they ran, those on a sample last."""
    found = [Executed(name, name, attack) for name, attack in tier.first_pass.items()]
    for done in _restarts(tier, merged):
        found += [
            Executed(f"{name}_restart_{done.restart}", arrays, attack, done.restart)
            for name, (arrays, attack) in zip(done.names, _attacks_of(done, tier).items(), strict=True)
        ]
    sampled = tier.rounds.sampled if tier.rounds else ()
    return found + [Executed(name, f"{tier.name}.{name}", tier.attacks[name], sampled=True) for name in sampled]


def sequential_sample(tier: Tier, merged: Merged) -> tuple[SequentialSample, np.ndarray, int, int]:
    """Return the sample of a tier with attacks on one: its plan, images, how many of these were drawn, and fell.

    The images, int64 (M,) ids, are those that were right before the first was drawn, in the order of drawing.
    """
    assert tier.rounds
    first = _next_index(tier, merged)
    candidates = np.array(merged.still_right(tier.name) | (merged.read(TierArrays, tier.name).broken_by >= first))
    ids = np.sort(merged.image.image_id[candidates])
    tolerated = int(tier.rounds.bound / 100 * len(merged) + 1e-9)
    rounds = [done for done in merged.rounds if done.tier == tier.name and not done.restart]
    drawn, fallen = sum(len(done.image_ids) for done in rounds), sum(map(merged.broken_in, rounds))
    return SequentialSample(len(ids), tolerated, CONFIDENCE), random_order(ids), drawn, fallen


def random_order(ids: np.ndarray) -> np.ndarray:
    """Return image ids, int64 (M,) ascending, in the order in which they are drawn, which depends on the ids alone."""
    return ids[make_keys(ORDER_SEED, torch.from_numpy(ids)).argsort(stable=True).numpy()]


def describe_round(finished: Round, merged: Merged) -> str:
    """Return a line for the log."""
    kind = f"restart {finished.restart}" if finished.restart else "a sample"
    if finished.regions:
        kind += f" on {len(finished.regions)} regions"
    return f"{kind} of {len(finished.image_ids)} images broke {merged.broken_in(finished)}"


def _next_restart(tier: Tier, merged: Merged) -> Round | None:
    assert tier.rounds
    if not tier.rounds.restart_gain:
        return None
    stages, done = restart_stages(tier), _restarts(tier, merged)
    places = {tuple(stage): place for place, stage in enumerate(stages)}
    enough = tier.rounds.restart_gain * len(merged)
    following = next_stage(len(stages), [(places[each.names], 100 * merged.broken_in(each) >= enough) for each in done])
    ids = np.sort(merged.image.image_id[merged.still_right(tier.name)])
    # Of an image that an attack on one region has broken another region may stand.
    if following is None or (not len(ids) and tier.kind != "local"):
        return None
    names = tuple(stages[following])
    current = Round(tier.name, tuple(ids.tolist()), _next_index(tier, merged), names, restart=len(done) + 1)
    return with_regions(current, tier, merged) if isinstance(tier, LocalTier) else current


def _next_sample(tier: Tier, merged: Merged) -> Round | None:
    assert tier.rounds
    if not tier.rounds.sampled:
        return None
    sample, ids, drawn, fallen = sequential_sample(tier, merged)
    size = sample.next_size(drawn, fallen)
    if size is None:
        return None
    return Round(tier.name, tuple(ids[drawn:size].tolist()), _next_index(tier, merged), tier.rounds.sampled)


def _restarts(tier: Tier, merged: Merged) -> list[Round]:
    return [done for done in merged.rounds if done.tier == tier.name and done.restart]


def _next_index(tier: Tier, merged: Merged) -> int:
    """`TierArrays.broken_by` of the first attack behind the restarts until now."""
    return len(tier.first_pass) + sum(len(done.names) for done in _restarts(tier, merged))


def run_round_batch(current: Round, setting: BatchSetting, items: list[dict], progress: Progress) -> BatchArrays:
    """Run the attacks of a round on a batch of its images.

    Args:
        current: the round.
        setting: of the evaluation.
        items: the mapper's dicts.
        progress: receives a message before each attack.

    Returns:
        Arrays of all images under the names of the round's attacks; and, behind the prefix `BROKEN`, those of the
        newly broken images as results of the tier, which replace earlier ones.
    """
    start = time.perf_counter()
    plan, evaluators = setting.plan, setting.evaluators
    tier = next(tier for tier in plan.tiers if tier.name == current.tier)
    attacks = _attacks_of(current, tier)
    with attack_mode(setting.model, full_gradient=False) as inner:
        batch = AttackedBatch(inner, items, len(plan.part_names))
        if isinstance(tier, LocalTier):
            result = restart_regions(current, tier, attacks, batch, progress.note, plan.sample)
        else:
            result = run_tier(Tier(tier.name, "class", attacks), batch, progress.note)
        arrays = {"images.image_id": batch.keys.numpy(), **attack_arrays(batch), **result.arrays}
        for name, fooled in result.fooled.items():
            arrays |= AttackArrays(fooled=fooled.numpy()).write(name)
        rows = (result.broken_by >= 0).nonzero()[:, 0]
        forwards = batch.forwards
        if len(rows):
            part, broken = batch.select(rows), _select(result, rows, batch, current.first)
            replacement = _replacement(part, broken, tier, plan, evaluators)
            arrays |= {BROKEN + name: array for name, array in replacement.items()}
            if setting.predictions is not None:
                replace_predictions(setting.predictions, part, tier.name, broken.outputs, replacement, evaluators)
            if plan.save_adversarials:
                assert setting.adversarials is not None, "the plan keeps images"
                prediction = save_adversarials(
                    setting.adversarials / tier.name,
                    plan.save_adversarials,
                    part,
                    broken.images,
                    broken.outputs,
                    tier.threat_model,
                    name=f"round_{current.number}",
                )
                if prediction is not None:
                    saved = TierArrays(broken.broken_by.numpy(), prediction).write(tier.name)
                    arrays |= {BROKEN + name: array for name, array in saved.items()}
            forwards += part.forwards
    cost = CostArrays(forwards=np.array(forwards), seconds=np.array(time.perf_counter() - start))
    return arrays | cost.write("evaluation")


def _attacks_of(current: Round, tier: Tier) -> dict[str, Attack]:
    """The attacks of a round, by the name of their arrays."""
    if not current.restart:
        return {f"{tier.name}.{name}": tier.attacks[name] for name in current.names}
    attacks = {name: attack for stage in restart_stages(tier) for name, attack in stage.items()}
    return {
        f"{tier.name}.{name}.restart_{current.restart}": attacks[name].at_restart(
            attacks[name].restarts - 1 + current.restart
        )
        for name in current.names
    }


def _select(result: TierResult, rows: torch.Tensor, batch: AttackedBatch, first: int) -> TierResult:
    """The result of the images at `rows`; attacks are counted from `first`."""
    outputs = [result.outputs[row] for row in rows.tolist()]
    return TierResult(result.images[batch.on_device(rows)], outputs, result.broken_by[rows] + first, {}, {}, {})


def _replacement(
    part: AttackedBatch, broken: TierResult, tier: Tier, plan: Plan, evaluators: DatasetEvaluators
) -> BatchArrays:
    """Arrays of the newly broken images as results of the tier, on the curve, and as pictures."""
    threat = tier.threat_model
    radii = [eps for eps, attack in plan.curve.items() if attack.threat_model.norm == threat.norm and eps >= threat.eps]
    curve = {eps: torch.zeros(len(part), dtype=torch.bool) for eps in radii}
    pictures = plan.sample if tier is plan.first else ()
    found = describe_batch(part, {tier: broken}, curve, evaluators, pictures)
    return {name: array for name, array in found.items() if _is_replaced(name, tier.name)}


def _is_replaced(name: str, tier: str) -> bool:
    of_images = {*ClassArrays.names(tier).values(), *TierArrays.names(tier).values(), f"images.pixels_right.{tier}"}
    prefixes = ("images.curve.", f"counts.{tier}.", f"evaluators.{tier}.", "pictures.")
    return name == "images.image_id" or name in of_images or name.startswith(prefixes)
