"""Restarts of tier local: on the regions that stand, decided and merged the same way everywhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.utils import comm

from part_robust.evaluation.adversarials import load_adversarials
from part_robust.evaluation.journal import Journal
from part_robust.evaluation.local_record import local_arrays
from part_robust.evaluation.local_rounds import region_results
from part_robust.evaluation.pictures import picture_sample
from part_robust.evaluation.plan import build_tiers
from part_robust.evaluation.record import describe_evaluation, flags_of, holds, metrics_of
from part_robust.evaluation.regions import chosen_regions, labelled_regions
from part_robust.evaluation.tiers import RoundSettings, Tier
from part_robust.modeling.counts import with_counts
from tests.evaluation.local_fixture import local_tier, some_items
from tests.evaluation.tier_fixture import PARTS, SmallPartModel, attack, evaluators, make_plan, run
from tests.processes import start_two
from tests.toy import tiny_cfg

RESTARTS = RoundSettings(restart_gain=5.0)


def noisy(**values):
    """One short step from a random point: each restart has its own luck."""
    return attack("margin", name="PGD", STEPS=1, STEP_SIZE=0.5, KEEP="best", SEED=5, eps=60.0, **values)


def plan_of(items, rounds: RoundSettings | None = RESTARTS, attacks=None, **values):
    tier = local_tier(attacks=attacks or {"noisy_local": noisy()}, rounds=rounds, **values)
    weak = Tier("weak", "class", {"fgsm": attack(name="PGD", STEPS=1, STEP_SIZE=1.0, KEEP="best")})
    sample = picture_sample([item["image_id"] for item in items])
    return make_plan(tiers=[weak, tier], sample=sample, curve={}, save_adversarials="npz")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(merged, plan, record, folder) in one batch."""
    items, folder = some_items(), tmp_path_factory.mktemp("whole")
    plan = plan_of(items)
    merged, _ = run(folder, items, len(items), plan=plan)
    return merged, plan, describe_evaluation(plan, merged, metrics_of(plan, merged, evaluators()), "CPU"), folder


def results(plan, merged) -> dict[str, np.ndarray]:
    """Everything that must be the same for any batch size, order and number of processes."""
    arrays = {name: array for name, array in local_arrays(plan.tiers[1], PARTS, merged).items() if name != "names"}
    rounds = [(done.restart, len(done.image_ids), len(done.regions), merged.broken_in(done)) for done in merged.rounds]
    metrics = metrics_of(plan, merged, evaluators())
    numbers = [value for task in metrics.values() for value in task.values()]
    return {**arrays, **flags_of(plan, merged), "rounds": np.array(rounds), "metrics": np.array(numbers)}


def assert_same(expected, found) -> None:
    assert expected.keys() == found.keys()
    for name, array in expected.items():
        # One value of a picture may be rounded to the next.
        tolerance = 1 if name.startswith("picture_") else 1e-4
        np.testing.assert_allclose(
            found[name].astype(float), array.astype(float), rtol=1e-4, atol=tolerance, err_msg=name
        )


def test_restarts_break_regions_and_images(whole):
    """Else the tests below test nothing."""
    merged, plan, record, _ = whole
    broke = record["tiers"]["local"]["restarts"]["broke"]
    assert len(broke) == len(merged.rounds) >= 2 and broke[0] > 0
    gain = plan.tiers[1].rounds.restart_gain / 100 * len(merged)
    assert broke[-1] < gain <= min(broke[:-1])
    assert any(done.settled for done in merged.rounds), "regions of images that are broken elsewhere restart, too"
    names = [row["name"] for row in record["tiers"]["local"]["attacks"]]
    restarts = [f"noisy_local_restart_{restart + 1}" for restart in range(len(broke))]
    assert names == record["local"]["attacks"] == ["noisy_local", *restarts]
    newly = [sum(row["broken_by"][name] for row in record["local"]["table"]) for name in restarts]
    assert all(regions >= images for regions, images in zip(newly, broke, strict=True)) and max(newly) > max(broke)
    assert (flags_of(plan, merged)["broken_by_local"] > 0).any()


@pytest.mark.parametrize("batch_size", [1, 4])
def test_batch_size_and_order_do_not_matter(batch_size, whole, tmp_path):
    items = some_items()
    merged, plan = run(tmp_path, items[::-1], batch_size, plan=plan_of(items))
    assert_same(results(whole[1], whole[0]), results(plan, merged))


def _one_of_two(folder: str) -> None:
    items = some_items()
    merged, plan = run(Path(folder), items, 3, plan=plan_of(items), rank=comm.get_rank(), world=2)
    if merged is not None:
        np.savez(Path(folder) / "results.npz", **results(plan, merged))


def test_two_processes(whole, tmp_path):
    start_two(_one_of_two, (str(tmp_path),))
    with np.load(tmp_path / "results.npz") as found:
        assert_same(results(whole[1], whole[0]), dict(found))


class Interrupted(Exception):
    """Ends an evaluation in the middle."""


@pytest.mark.parametrize("after", [2, 4, 6])
def test_resumed_inside_a_round(after, whole, tmp_path, monkeypatch):
    """The first 3 batches are those of the first pass."""
    items, written, original = some_items(), [], Journal.write

    def write(self, batch, image_ids, name="batch"):
        if len(written) == after:
            raise Interrupted
        original(self, batch, image_ids, name)
        written.append(name)

    monkeypatch.setattr(Journal, "write", write)
    with pytest.raises(Interrupted):
        run(tmp_path, items, 5, plan=plan_of(items))
    monkeypatch.setattr(Journal, "write", original)
    merged, plan = run(tmp_path, items, 4, plan=plan_of(items))
    assert_same(results(whole[1], whole[0]), results(plan, merged))
    monkeypatch.setattr(SmallPartModel, "class_logits", None)
    merged, plan = run(tmp_path, items, plan=plan_of(items))
    assert_same(results(whole[1], whole[0]), results(plan, merged))


def test_restarts_give_what_one_pass_with_as_many_gives(tmp_path):
    """Of labelled regions: a patch may go elsewhere when the first attack has more runs."""
    items, regions = some_items(), ("parts", "object", "background")
    plan = plan_of(items, regions=regions, patch_sides=())
    merged, _ = run(tmp_path / "rounds", items, 5, plan=plan)
    number = len(merged.rounds)
    direct = plan_of(items, None, {"noisy_local": noisy(RESTARTS=1 + number)}, regions=regions, patch_sides=())
    once, _ = run(tmp_path / "once", items, 5, plan=direct)
    found, expected = (region_results(each.tiers[1], other) for each, other in ((plan, merged), (direct, once)))
    assert ((found.broken_by >= 0) == (expected.broken_by >= 0)).all() and (found.broken_by > 0).any()
    assert (holds(merged, plan.tiers[1]) == holds(once, direct.tiers[1])).all()


def test_images_metrics_and_pictures_are_those_of_the_last_round(whole):
    merged, plan, record, folder = whole
    by_id, model, judges, seen = {item["image_id"]: item for item in some_items()}, SmallPartModel(), evaluators(), []
    tier, arrays = plan.tiers[1], local_arrays(plan.tiers[1], PARTS, merged)
    broken = set(arrays["image_id"][arrays["broken_by"] >= 0].tolist())
    right = dict(zip(merged.image.image_id.tolist(), holds(merged, tier).tolist(), strict=True))
    clean = dict(zip(merged.image.image_id.tolist(), merged.right("clean").tolist(), strict=True))
    assert right == {image_id: clean[image_id] and image_id not in broken for image_id in right}
    for saved in load_adversarials(folder / "adversarials" / "local"):
        batch = [by_id[image_id] for image_id in saved["image_id"].tolist()]
        with torch.no_grad():
            outputs = model.inference(torch.from_numpy(saved["images"]), None)
        judges.process(batch, outputs)
        predictions = [int(output["class_logits"].argmax()) for output in outputs]
        assert predictions == saved["prediction"].tolist()
        verdicts = [found == item["class_id"] for found, item in zip(predictions, batch, strict=True)]
        assert verdicts == [right[item["image_id"]] for item in batch]
        seen += saved["image_id"].tolist()
    assert sorted(seen) == sorted(by_id), "each image once"
    expected, metrics = judges.evaluate(), metrics_of(plan, merged, evaluators())
    for task in ("classification", "part_seg"):
        assert metrics[f"{task}_local"] == pytest.approx(expected[task], abs=1e-9), task
    pairs = list(zip(arrays["image_id"].tolist(), arrays["region"].tolist(), strict=True))
    held = dict(zip(pairs, (arrays["broken_by"] < 0).tolist(), strict=True))
    shown = list(zip(arrays["picture_image_id"].tolist(), arrays["picture_region"].tolist(), strict=True))
    assert [held[pair] for pair in shown] == (arrays["picture_after"] == arrays["picture_label"]).tolist()
    assert len(set(shown)) == len(shown)
    changed = (arrays["picture_clean"] != arrays["picture_attacked"]).any(axis=1)
    assert not (changed & ~arrays["picture_mask"]).any()
    greyed = {row["region"]: row["greyed"] for row in record["local"]["table"]}
    assert greyed["object"] is not None and greyed["patch:3px"] is None, "as the first pass found it"


def test_chosen_regions_are_those_of_the_labels():
    items, sides, cpu = some_items(), (2, 3), torch.device("cpu")

    def masks(groups):
        return {
            (row, region): group.masks[0][place]
            for group in groups
            for place, (row, region) in enumerate(zip(group.rows.tolist(), group.regions.tolist(), strict=True))
        }

    expected = masks(labelled_regions(items, len(PARTS), ("parts", "object", "background"), cpu))
    pairs = torch.tensor(sorted([*((*pair, -1, -1) for pair in expected), (1, 4, 6, 7), (2, 5, 0, 1)]))
    found = masks(chosen_regions(items, len(PARTS), sides, pairs, cpu))
    assert found.keys() == {*expected, (1, 4), (2, 5)}
    assert all(torch.equal(found[pair], mask) for pair, mask in expected.items())
    for pair, corner, side in (((1, 4), [6, 7], 2), ((2, 5), [0, 1], 3)):
        inside = found[pair][0].nonzero()
        assert inside.amin(dim=0).tolist() == corner and len(inside) == side * side


def test_the_config_says_that_it_restarts(toy_data):
    opts = ["TEST.TIER", "local", "TEST.RESTART_GAIN", 0.5, "TEST.LOCAL.EPS", 80.0, "TEST.LOCAL.NORM", "l2"]
    (tier,) = build_tiers(with_counts(tiny_cfg("deeplab_two_headed", *opts)))
    assert tier.rounds.restart_gain == 0.5 and list(tier.rounds.added) == ["apgd_margin_local"]
    assert tier.rounds.added["apgd_margin_local"].threat_model == tier.threat_model
    opts[3] = 0.0
    assert build_tiers(with_counts(tiny_cfg("deeplab_two_headed", *opts)))[0].rounds is None
