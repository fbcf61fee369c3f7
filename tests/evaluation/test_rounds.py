"""Rounds after the first pass: restarts and attacks on a sample, decided and merged the same way everywhere."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.utils import comm

from part_robust.attacks import attack_mode
from part_robust.evaluation.adversarials import load_adversarials
from part_robust.evaluation.checks import record_checks
from part_robust.evaluation.journal import Journal
from part_robust.evaluation.named_arrays import ImageArrays
from part_robust.evaluation.pictures import picture_sample
from part_robust.evaluation.record import describe_evaluation, flags_of, holds, metrics_of
from part_robust.evaluation.rounds import next_stage, sequential_sample
from part_robust.evaluation.tiers import RoundSettings, Tier
from tests.evaluation.tier_fixture import SmallPartModel, attack, evaluators, make_items, make_plan, run
from tests.processes import start_two

COUNT = 44


def noisy(**values):
    """One short step from a random point: each restart has its own luck."""
    return attack("margin", name="PGD", STEPS=1, STEP_SIZE=0.5, KEEP="best", SEED=5, **values)


def square(steps: int = 25):
    return attack("margin", "Square", STEPS=steps)


def bounded(gain: float = 0.5, bound: float = 12.0, name: str = "bounded") -> Tier:
    return Tier(name, "class", {"noisy": noisy(), "square": square()}, RoundSettings(gain, ("square",), bound))


def plan_of(*tiers: Tier, **values):
    curve = {eps: attack("margin", name="PGD", STEPS=1, STEP_SIZE=0.1, KEEP="best", eps=eps) for eps in (3.0, 6.0, 9.0)}
    return make_plan(**{"tiers": list(tiers) or [bounded()], "curve": curve, **values})


@pytest.fixture(scope="module")
def items():
    return make_items(SmallPartModel(), COUNT)


def sampled_plan(items, *tiers, **values):
    return plan_of(*tiers, sample=picture_sample([item["image_id"] for item in items]), **values)


@pytest.fixture(scope="module")
def whole(items, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    plan = sampled_plan(items, save_adversarials="npz")
    merged, _ = run(folder, items, COUNT, plan=plan)
    metrics = metrics_of(plan, merged, evaluators())
    return merged, plan, metrics, describe_evaluation(plan, merged, metrics, "CPU"), folder


def rounds_of(merged) -> list[tuple]:
    return [(done.tier, done.number, done.restart, done.image_ids, merged.broken_in(done)) for done in merged.rounds]


def assert_same(first, second, metrics: bool = True) -> None:
    (merged, plan), (other, _) = first, second
    assert rounds_of(merged) == rounds_of(other)
    one, two = flags_of(plan, merged), flags_of(plan, other)
    assert one.keys() == two.keys()
    for name in one:
        np.testing.assert_allclose(two[name], one[name], rtol=1e-4, atol=1e-4, err_msg=name)
    if metrics:
        found = [metrics_of(plan, each, evaluators()) for each in (merged, other)]
        for task in found[0]:
            assert found[1][task] == pytest.approx(found[0][task], abs=1e-6), task


def test_the_toy_has_rounds_of_every_kind(whole):
    merged, _, _, record, _ = whole
    restarts, samples = ([done for done in merged.rounds if bool(done.restart) == kind] for kind in (True, False))
    assert len(restarts) >= 2 and merged.broken_in(restarts[0]) > 0 == merged.broken_in(restarts[-1])
    assert len(samples) >= 2 and all(merged.broken_in(done) > 0 for done in samples[:-1])
    bound = record["tiers"]["bounded"]["bound"]
    assert 0 < bound["fell"] < bound["drawn"] < bound["stood"], "else the tests below test nothing"


@pytest.mark.parametrize("batch_size", [2, 7])
def test_batch_size_and_order_do_not_matter(batch_size, items, whole, tmp_path):
    plan = sampled_plan(items)
    assert_same(whole[:2], run(tmp_path, items[::-1], batch_size, plan=plan))


def _one_of_two(folder: str, batch_size: int) -> None:
    items = make_items(SmallPartModel(), COUNT)
    plan = sampled_plan(items)
    merged, _ = run(Path(folder), items, batch_size, plan=plan, rank=comm.get_rank(), world=2)
    assert (merged is not None) == comm.is_main_process()
    if merged is not None:
        # A round of fewer images than processes, too.
        assert 1 in [len(done.image_ids) for done in merged.rounds]
        np.savez(Path(folder) / "flags.npz", **flags_of(plan, merged))


def test_two_processes(whole, tmp_path):
    start_two(_one_of_two, (str(tmp_path), 3))
    expected = flags_of(whole[1], whole[0])
    with np.load(tmp_path / "flags.npz") as found:
        assert set(found.files) == set(expected)
        for name in expected:
            np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, atol=1e-4, err_msg=name)


class Interrupted(Exception):
    """Ends an evaluation in the middle."""


@pytest.mark.parametrize("after", [2, 7, 10, 13])
def test_resumed_inside_a_round(after, items, whole, tmp_path, monkeypatch):
    """The first 6 batches are those of the first pass; whatever follows is not attacked twice."""
    plan, written = sampled_plan(items), []
    original = Journal.write

    def write(self, batch, image_ids, name="batch"):
        if len(written) == after:
            raise Interrupted
        original(self, batch, image_ids, name)
        written.append((name, tuple(image_ids)))

    monkeypatch.setattr(Journal, "write", write)
    with pytest.raises(Interrupted):
        run(tmp_path, items, 8, plan=plan)
    before = list(written)
    monkeypatch.setattr(Journal, "write", lambda *args: written.append((args[3], tuple(args[2]))) or original(*args))
    assert_same(whole[:2], run(tmp_path, items, 5, plan=plan))
    ids = {name: [i for each, batch in written for i in batch if each == name] for name, _ in written}
    assert all(len(found) == len(set(found)) for found in ids.values()), "an image was attacked twice in a round"
    assert written[: len(before)] == before and len(written) > len(before)


def test_a_finished_evaluation_is_read_from_its_journal(items, whole, monkeypatch):
    monkeypatch.setattr(SmallPartModel, "class_logits", None)
    assert_same(whole[:2], run(whole[4], items, plan=whole[1]))


def test_batches_of_other_images_are_not_those_of_a_round(items, whole, tmp_path):
    """As after a change of a library that broke other images in the first pass."""
    plan = sampled_plan(items)
    run(tmp_path, items, 8, plan=plan)
    journal = Journal(tmp_path / "journal")
    (batch,) = journal.batches("round_1")[:1]
    outside = next(i["image_id"] for i in items if i["image_id"] not in whole[0].rounds[0].image_ids)
    batch["images.image_id"][0] = outside
    for path in (tmp_path / "journal").glob("round_1_*.npz"):
        path.unlink()
    journal.write(batch, ImageArrays.ids(batch), "round_1")
    assert_same(whole[:2], run(tmp_path, items, 8, plan=plan))


def test_a_restart_is_the_run_that_restarts_adds(items):
    """In any batch: of the images that runs 0 to k - 1 left, run k breaks those that RESTARTS = k + 1 breaks."""
    model = SmallPartModel()
    images, labels = model.preprocess(items)[0], torch.tensor([item["class_id"] for item in items])
    keys = torch.tensor([item["image_id"] for item in items])
    for make in (lambda **values: attack("margin", STEPS=2, eps=2.0, **values), noisy):
        with attack_mode(model) as inner:
            totals = [make(RESTARTS=k + 1)(inner.class_logits, images, labels, keys=keys).success for k in range(3)]
            for k in (1, 2):
                rest = (~totals[k - 1]).nonzero()[:, 0]
                for rows in rest.split(5):
                    found = make().at_restart(k)(inner.class_logits, images[rows], labels[rows], keys=keys[rows])
                    assert torch.equal(found.success, totals[k][rows])
    assert (totals[0] != totals[2]).any(), "restarts that break nothing test nothing"


def test_restarts_give_what_one_pass_with_as_many_gives(items, whole, tmp_path):
    merged, plan, _, record, _ = whole
    restarts = record["tiers"]["bounded"]["restarts"]
    number = restarts["number"]
    assert number == len(restarts["broke"]) == sum(bool(done.restart) for done in merged.rounds)
    direct = plan_of(Tier("bounded", "class", {"noisy": noisy(RESTARTS=1 + number)}))
    once, _ = run(tmp_path, items, plan=direct)
    after = record["tiers"]["bounded"]["attacks"][number]
    assert after["name"] == f"noisy_restart_{number}" and after["restart"] == number
    assert after["accuracy_after"] == pytest.approx(100 * holds(once, direct.first).mean())
    assert 100 * restarts["broke"][-1] < restarts["gain"] * COUNT <= 100 * min(restarts["broke"][:-1])


def test_models_without_jumps_stop_after_one_try(items, tmp_path):
    tier = Tier("one", "class", {"ce": attack(STEPS=40)}, RoundSettings(restart_gain=30.0))
    plan = plan_of(tier)
    merged, _ = run(tmp_path, items, plan=plan)
    record = describe_evaluation(plan, merged, metrics_of(plan, merged, evaluators()), "CPU")["tiers"]["one"]
    assert record["restarts"]["number"] == 1 and "bound" not in record
    assert [row["name"] for row in record["attacks"]] == ["ce", "ce_restart_1"]


def test_attacks_added_to_restarts_break_what_the_tier_left(items, tmp_path):
    rounds = RoundSettings(restart_gain=3.0, added={"strong": attack(STEPS=8)})
    plan = plan_of(Tier("one", "class", {"noisy": noisy()}, rounds))
    merged, _ = run(tmp_path / "whole", items, COUNT, plan=plan)
    record = describe_evaluation(plan, merged, metrics_of(plan, merged, evaluators()), "CPU")["tiers"]["one"]
    broke, names = record["restarts"]["broke"], [row["name"] for row in record["attacks"]]
    assert names[:3] == ["noisy", "strong_restart_1", "strong_restart_2"] and names[-1] == f"noisy_restart_{len(broke)}"
    assert broke[0] > 0 == broke[-1] and record["restarts"]["added"]["strong"]["steps"] == 8
    by = flags_of(plan, merged)["broken_by_one"]
    assert [(by == place + 1).sum() for place in range(len(broke))] == broke
    others, _ = run(tmp_path / "batches", items, 7, plan=plan)
    assert_same((merged, plan), (others, plan))
    # Tiers without any are described as earlier versions described them.
    assert RoundSettings(0.5).describe() == {"restart_gain": 0.5, "sampled": (), "bound": 1.0}
    assert rounds.describe()["added_first"]["strong"] == attack(STEPS=8).describe()


@pytest.mark.parametrize("stages", [1, 2, 3])
@pytest.mark.parametrize("luck", list(itertools.product([False, True], repeat=6)))
def test_restarts_end_when_no_stage_gains(stages, luck):
    """Whatever the attacks gain: each stage that ever ran ran in vain since the last gain, and none twice in vain."""
    done = []
    while (stage := next_stage(stages, done)) is not None:
        done.append((stage, len(done) < len(luck) and luck[len(done)]))
    gains = [place for place, (_, gained) in enumerate(done) if gained]
    in_vain = [stage for stage, _ in done[gains[-1] + 1 if gains else 0 :]]
    assert in_vain == list(range(stages if gains else 1))
    assert all(after == 0 for (_, gained), (after, _) in itertools.pairwise(done) if gained)
    assert next_stage(0, []) is None


def test_own_attacks_restart_only_where_added_ones_gain(items, tmp_path):
    weak = attack("margin", name="PGD", STEPS=1, STEP_SIZE=0.01, KEEP="best")
    rounds = RoundSettings(restart_gain=30.0, added={"weak": weak})
    plan = plan_of(Tier("one", "class", {"noisy": noisy()}, rounds))
    merged, _ = run(tmp_path, items, plan=plan)
    record = describe_evaluation(plan, merged, metrics_of(plan, merged, evaluators()), "CPU")["tiers"]["one"]
    assert [row["name"] for row in record["attacks"]] == ["noisy", "weak_restart_1"]
    assert record["restarts"]["number"] == 1


def test_metrics_and_flags_are_those_of_the_saved_images(items, whole):
    """Every image once, as the last round left it; all metrics of the tier are computed on these."""
    merged, plan, metrics, record, folder = whole
    by_id, model, judges, seen = {item["image_id"]: item for item in items}, SmallPartModel(), evaluators(), []
    robust = dict(zip(merged.image.image_id.tolist(), holds(merged, plan.first).tolist(), strict=True))
    for saved in load_adversarials(folder / "adversarials" / "bounded"):
        batch = [by_id[image_id] for image_id in saved["image_id"].tolist()]
        attacked = torch.from_numpy(saved["images"])
        plan.first.threat_model.verify(attacked, model.preprocess(batch)[0])
        with torch.no_grad():
            outputs = model.inference(attacked, None)
        judges.process(batch, outputs)
        right = [
            int(out["class_logits"].argmax()) == item["class_id"] for item, out in zip(batch, outputs, strict=True)
        ]
        assert right == [robust[item["image_id"]] for item in batch]
        assert saved["prediction"].tolist() == [int(out["class_logits"].argmax()) for out in outputs]
        seen += saved["image_id"].tolist()
    assert sorted(seen) == sorted(by_id), "each image once"
    expected = judges.evaluate()
    for task in ("classification", "part_seg"):
        assert metrics[f"{task}_bounded"] == pytest.approx(expected[task], abs=1e-9), task
    counts = merged.labels("bounded")
    assert counts.hits.sum() / counts.truth.sum() == pytest.approx(expected["part_seg"]["pixel_accuracy"] / 100)
    right, pixels = flags_of(plan, merged)["pixels_right_bounded"], flags_of(plan, merged)["pixels"]
    assert right.sum() / pixels.sum() == pytest.approx(expected["part_seg"]["pixel_accuracy"] / 100)
    assert record["tiers"]["bounded"]["robust"]["correct"] == sum(robust.values())


def test_pictures_show_the_newly_broken_image(items, whole):
    merged, plan, _, _, folder = whole
    pictures = merged.pictures()
    assert sorted(pictures.image_id.tolist()) == sorted(item["image_id"] for item in items)
    found = dict(zip(pictures.image_id.tolist(), zip(pictures.attacked, pictures.broken, strict=True), strict=True))
    for saved in load_adversarials(folder / "adversarials" / "bounded"):
        for image_id, image, prediction, label in zip(
            *(saved[name] for name in ("image_id", "images", "prediction", "label")), strict=True
        ):
            assert np.array_equal(found[image_id][0], image) and found[image_id][1] == (prediction != label)


def test_eight_bits(items, tmp_path):
    plan = sampled_plan(items, save_adversarials="png")
    merged, _ = run(tmp_path, items, 9, plan=plan)
    saved = list(load_adversarials(tmp_path / "adversarials" / "bounded"))
    right = {
        int(image_id): wrong == 0
        for each in saved
        for image_id, wrong in zip(each["image_id"], each["prediction"] - each["label"], strict=True)
    }
    record = describe_evaluation(plan, merged, metrics_of(plan, merged, evaluators()), "CPU")
    assert record["tiers"]["bounded"]["robust_8bit"]["correct"] == sum(right.values()) and len(right) == COUNT
    with torch.no_grad():
        for each in saved:
            predictions = SmallPartModel().class_logits(torch.from_numpy(each["images"])).argmax(dim=1)
            assert predictions.tolist() == each["prediction"].tolist()


def test_the_curve_is_never_above_the_tier(whole):
    merged, plan, _, record, _ = whole
    flags = flags_of(plan, merged)
    assert not (flags["robust_eps_curve_6"] & ~flags["robust_bounded"]).any()
    assert not (flags["robust_eps_curve_9"] & ~flags["robust_bounded"]).any()
    accuracies = [point["accuracy"] for point in record["eps_curve"]]
    assert accuracies == sorted(accuracies, reverse=True) and accuracies[0] > accuracies[1]


def test_counts_are_those_of_the_model(items, tmp_path, monkeypatch):
    passes, inferences = [], []
    features, inference = SmallPartModel._features, SmallPartModel.inference
    monkeypatch.setattr(SmallPartModel, "_features", lambda self, x: passes.append(len(x)) or features(self, x))
    monkeypatch.setattr(
        SmallPartModel, "inference", lambda self, x, padding: inferences.append(len(x)) or inference(self, x, padding)
    )
    plan = plan_of(curve={})
    merged, _ = run(tmp_path, items, plan=plan)
    record = describe_evaluation(plan, merged, metrics_of(plan, merged, evaluators()), "CPU")
    # This model runs its features twice for one inference.
    assert sum(passes) == record["forwards"] + sum(inferences)
    rows = record["tiers"]["bounded"]["attacks"]
    assert sum(row["backwards"] for row in rows) == record["backwards"]
    assert rows[-1]["name"] == "square" and rows[-1]["forwards"] > 0
    assert record["convergence"].keys() == set(), "no attack records its losses here"


def test_a_sample_says_of_its_images_what_the_whole_tier_says(items, tmp_path):
    """Standard and bounded in one evaluation: the checks find no contradiction, and the bound is true."""
    standard = Tier("standard", "class", {"noisy": noisy(), "square": square()})
    plan = sampled_plan(items, standard, bounded(gain=0.0))
    merged, _ = run(tmp_path, items, plan=plan)
    record = describe_evaluation(plan, merged, metrics_of(plan, merged, evaluators()), "CPU")
    flags, bound = flags_of(plan, merged), record["tiers"]["bounded"]["bound"]
    drawn = flags["sampled_bounded"]
    assert drawn.sum() == bound["drawn"] and not (drawn & ~flags["clean_correct"]).any()
    assert np.array_equal(flags["robust_standard"][drawn], flags["robust_bounded"][drawn])
    more = int((flags["robust_bounded"] & ~flags["robust_standard"]).sum())
    assert 0 < more <= bound["images"], "the seed of the order is fixed, so this does not depend on chance"
    lowest = record["tiers"]["standard"]["robust"]["accuracy"]
    assert bound["at_least"] <= lowest < record["tiers"]["bounded"]["robust"]["accuracy"]
    assert bound["at_least"] == pytest.approx(record["tiers"]["bounded"]["robust"]["accuracy"] - bound["points"])
    described = {name: attack.describe() for name, attack in plan.attacks().items()}
    checks = {check.id: check for check in record_checks(record, described, flags)}
    assert checks["C5"].status == "pass", checks["C5"].sentence
    broken = {**flags, "robust_bounded": flags["robust_bounded"] | (drawn & flags["fooled_square"])}
    failed = {check.id: check for check in record_checks(record, described, broken)}
    assert failed["C5"].status == "fail"


def test_the_order_of_the_sample_is_that_of_the_ids_alone(items, whole):
    merged, plan, _, _, _ = whole
    sample, ids, drawn, _ = sequential_sample(plan.first, merged)
    assert len(ids) == sample.population and drawn < len(ids)
    assert list(ids) != sorted(ids)
    assert [i for done in merged.rounds if not done.restart for i in done.image_ids] == ids[:drawn].tolist()


def test_edges(items, tmp_path):
    # Nothing stands: no round, and nothing more can fall.
    everything = attack(name="PGD", STEPS=20, STEP_SIZE=40.0, KEEP="best", eps=255.0)
    tier = Tier("bounded", "class", {"all": everything, "square": attack("margin", "Square", STEPS=3, eps=255.0)},
                RoundSettings(0.2, ("square",), 1.0))  # fmt: skip
    plan = plan_of(tier, curve={})
    merged, _ = run(tmp_path / "none", items, plan=plan)
    record = describe_evaluation(plan, merged, metrics_of(plan, merged, evaluators()), "CPU")["tiers"]["bounded"]
    assert merged.rounds == () and record["robust"]["correct"] == 0
    assert record["bound"]["points"] == 0 and record["bound"]["confidence"] == 100.0
    # So few images that all are needed: the bound is exact.
    few = items[:8]
    plan = plan_of(bounded(bound=1.0, gain=0.0), curve={})
    merged, _ = run(tmp_path / "few", few, plan=plan)
    record = describe_evaluation(plan, merged, metrics_of(plan, merged, evaluators()), "CPU")["tiers"]["bounded"]
    assert record["bound"]["drawn"] == record["bound"]["stood"] > 0 == record["bound"]["images"]
    # A bound that holds without any attack.
    plan = plan_of(bounded(bound=100.0, gain=0.0), curve={})
    merged, _ = run(tmp_path / "free", items, plan=plan)
    record = describe_evaluation(plan, merged, metrics_of(plan, merged, evaluators()), "CPU")["tiers"]["bounded"]
    assert (
        merged.rounds == () and record["bound"]["drawn"] == 0 and record["bound"]["images"] == record["bound"]["stood"]
    )
    assert record["bound"]["confidence"] == 100.0 and record["attacks"][-1]["attacked_images"] == 0


def test_only_tiers_on_the_class_have_rounds():
    with pytest.raises(ValueError, match="to have rounds"):
        Tier("parts", "parts", {"js": attack("jensen_shannon")}, RoundSettings(0.2))
