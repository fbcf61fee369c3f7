"""Evaluation with tiers: what the numbers mean, and that nothing but the images decides them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.utils import comm

from part_robust.attacks import ThreatModel, attack_mode
from part_robust.attacks.class_losses import class_margin
from part_robust.evaluation.adversarials import load_adversarials, round_into_ball
from part_robust.evaluation.attacked_batch import label_counts
from part_robust.evaluation.greedy_miou import greedy_worst_miou
from part_robust.evaluation.record import describe_evaluation, flags_of, holds, metrics_of, plan_warnings, write_files
from part_robust.evaluation.tiers import Tier
from tests.evaluation.tier_fixture import (
    CLASSES,
    EPS,
    PARTS,
    SmallPartModel,
    attack,
    evaluators,
    make_items,
    make_plan,
    run,
    same_flags,
)
from tests.processes import start_two

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_batch_size_and_order_do_not_matter(batch_size, items, whole, tmp_path):
    again = run(tmp_path, items[::-1], batch_size)
    same_flags(whole[:2], again)
    metrics = metrics_of(again[1], again[0], evaluators())
    for task in whole[2]:
        assert metrics[task] == pytest.approx(whole[2][task], abs=1e-6), task


def _one_of_two(folder: str) -> None:
    merged, plan = run(Path(folder), make_items(SmallPartModel()), 3, rank=comm.get_rank(), world=2)
    assert (merged is not None) == comm.is_main_process()
    if merged is not None:
        np.savez(Path(folder) / "flags.npz", **flags_of(plan, merged))


def test_two_processes(whole, tmp_path):
    start_two(_one_of_two, (str(tmp_path),))
    expected = flags_of(whole[1], whole[0])
    with np.load(tmp_path / "flags.npz") as found:
        assert set(found.files) == set(expected)
        for name in expected:
            np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, atol=1e-4, err_msg=name)


def test_the_toy_tells_things_apart(whole):
    flags = flags_of(whole[1], whole[0])
    counts = [int(flags[name].sum()) for name in ("clean_correct", "robust_weak", "robust_strong")]
    assert 14 > counts[0] > counts[1] >= counts[2] > 0, "else the tests below test nothing"
    assert flags["fooled_fgsm"].sum() > 0 and flags["fooled_ce"].sum() > 0


def test_only_images_that_still_stand_are_attacked(whole):
    merged, _, _, record = whole
    clean = record["clean"]["correct"]
    rows = record["tiers"]["strong"]["attacks"]
    assert rows[0]["attacked_images"] == clean
    for earlier, later in zip(rows, rows[1:], strict=False):
        unbroken = round(earlier["accuracy_after"] * record["num_images"] / 100)
        assert later["attacked_images"] == unbroken
        assert later["accuracy_after"] <= earlier["accuracy_after"]
    assert rows[0]["accuracy_alone"] == rows[0]["accuracy_after"] and rows[1]["accuracy_alone"] is None
    # The second tier's attacks ran already: they cost nothing again.
    assert int(merged.total("costs.fgsm.images")) == clean
    assert record["tiers"]["strong"]["robust"]["correct"] == round(rows[-1]["accuracy_after"] * 14 / 100)


def test_counts_are_those_of_the_model(items, tmp_path, monkeypatch):
    passes = []
    original = SmallPartModel._features
    monkeypatch.setattr(SmallPartModel, "_features", lambda self, x: passes.append(len(x)) or original(self, x))
    plan = make_plan(tiers=[Tier("one", "class", {"ce": attack()})], curve={})
    merged, _ = run(tmp_path, items, plan=plan)
    record = describe_evaluation(plan, merged, metrics_of(plan, merged, evaluators()), "CPU")
    # This model runs its features twice for one inference, of which there are two: clean and attacked.
    assert sum(passes) == record["forwards"] + 2 * len(items)


def test_worst_case_images_are_kept(items, tmp_path):
    """Scored by hand: broken images are wrong, the others have at least the margin of every single attack's result."""
    plan = make_plan(save_adversarials="npz", curve={})
    merged, _ = run(tmp_path, items, plan=plan)
    model, by_id = SmallPartModel(), {item["image_id"]: item for item in items}
    for tier in plan.tiers:
        right = dict(zip(merged.images["image_id"].tolist(), holds(merged, tier).tolist(), strict=True))
        seen = []
        for saved in load_adversarials(tmp_path / "adversarials" / tier.name):
            batch = [by_id[image_id] for image_id in saved["image_id"].tolist()]
            clean, attacked = model.preprocess(batch)[0], torch.from_numpy(saved["images"])
            ThreatModel("linf", EPS).verify(attacked, clean)
            labels = torch.tensor([item["class_id"] for item in batch])
            with torch.no_grad():
                outputs, logits = model.inference(attacked, None), model.class_logits(attacked)
            assert (logits.argmax(dim=1) == labels).tolist() == [right[item["image_id"]] for item in batch]
            if tier.kind == "parts":
                expected = label_counts(outputs, batch, len(PARTS)).right.tolist()
                assert saved["pixels_right"].tolist() == expected
            elif tier.kind == "class":
                unbroken = [row for row, item in enumerate(batch) if right[item["image_id"]]]
                with attack_mode(model) as inner:
                    for single in tier.attacks.values():
                        keys = torch.tensor([item["image_id"] for item in batch])
                        alone = single(inner.class_logits, clean, labels, keys=keys).images
                        margins = class_margin(inner.class_logits(alone), labels) - class_margin(logits, labels)
                        assert (margins[unbroken] <= 1e-4).all()
            seen += saved["image_id"].tolist()
        assert sorted(seen) == sorted(by_id)


def test_parts_are_the_worst_per_image(whole):
    merged, _, metrics, record = whole
    single = [merged.images[f"pixels_right.{row}"] for row in ("clean", "js", "pixels")]
    assert np.array_equal(merged.images["pixels_right.parts"], np.min(single, axis=0))
    assert (np.min(single, axis=0) < np.min(single[:2], axis=0)).any(), "both attacks must matter"
    tier = record["tiers"]["parts"]
    assert tier["robust"]["accuracy"] == pytest.approx(metrics["part_seg_parts"]["pixel_accuracy"])
    for row in ("", "_js", "_pixels", "_parts"):
        assert tier["mIoU"] <= metrics[f"part_seg{row}"]["mIoU"] + 1e-9
    assert merged.images["pixels"][merged.images["image_id"] == 1000 - 21] == 0, "image without part labels"
    heads = {row["attack"]: row["head"] for row in record["attack_matrix"]}
    assert heads == {
        "clean": None,
        "strong": "class",
        "weak": "class",
        "thesis": "class",
        "parts": "part",
        "js": "part",
        "pixels": "part",
    }


def test_greedy_miou_against_every_combination():
    generator = np.random.default_rng(0)
    choices = []
    for _ in range(3):
        prediction = generator.integers(0, 3, (4, 12))
        truth = np.tile(np.arange(3), (4, 4))
        entries = [(i, k) for i in range(4) for k in range(3)]
        choices.append(
            {
                "image_id": np.array([i for i, _ in entries]),
                "label": np.array([k for _, k in entries]),
                "hits": np.array([((prediction[i] == k) & (truth[i] == k)).sum() for i, k in entries]),
                "truth": np.array([(truth[i] == k).sum() for i, k in entries]),
                "predicted": np.array([(prediction[i] == k).sum() for i, k in entries]),
            }
        )

    def miou(combination):
        hits, union = np.zeros(3), np.zeros(3)
        for image, choice in enumerate(combination):
            own = choices[choice]
            rows = own["image_id"] == image
            hits += own["hits"][rows]
            union += (own["truth"] + own["predicted"] - own["hits"])[rows]
        return 100 * (hits / union).mean()

    found, chosen = greedy_worst_miou(choices, 3, sweeps=10)
    assert found == pytest.approx(miou(chosen))
    best = min(miou(c) for c in np.ndindex(3, 3, 3, 3))
    assert best - 1e-9 <= found <= min(miou([i] * 4) for i in range(3)) and found < best + 1.0
    assert np.isnan(greedy_worst_miou([{name: array[:0] for name, array in choices[0].items()}], 3)[0])


def test_curve_never_rises_and_agrees_with_the_tiers(whole):
    merged, plan, _, record = whole
    curve = [merged.images[f"curve.{eps:g}"] for eps in sorted(plan.curve)]
    for smaller, larger in zip(curve, curve[1:], strict=False):
        assert not (larger & ~smaller).any()
    assert np.array_equal(curve[0], merged.images["prediction.clean"] == merged.images["label"])
    assert not (merged.images["curve.6"] & ~holds(merged, plan.first)).any()
    assert [point["eps"] for point in record["eps_curve"]] == [0, 1, 3, 6, 12]
    assert record["eps_curve"][0]["correct"] > record["eps_curve"][-1]["correct"]


def test_larger_radii_begin_where_smaller_ones_ended():
    model = SmallPartModel()
    items = make_items(model)
    images, labels = model.preprocess(items)[0], torch.tensor([item["class_id"] for item in items])
    keys = torch.arange(len(items))
    single = attack(name="PGD", STEPS=1, STEP_SIZE=0.0, KEEP="last", EARLY_STOP=False, RESTARTS=1)
    starts = (images + 4.0).clamp(0, 255)
    with attack_mode(model) as inner:
        result = single(inner.class_logits, images, labels, keys=keys, starts=starts)
        assert torch.equal(result.images, starts), "no step: it stays where it began"
        far = single(inner.class_logits, images, labels, keys=keys, starts=images + 100.0)
        assert (far.images - images).abs().max() <= EPS


def test_record(whole, tmp_path):
    merged, plan, metrics, record = whole
    flags = flags_of(plan, merged)
    assert json.loads(json.dumps(record)) == record, "json without surprises"
    assert record["num_images"] == 14 and len(record["image_list_sha256"]) == 64
    assert record["headline"] == "strong" and (record["norm"], record["eps"]) == ("linf", EPS)
    for tier in ("strong", "weak", "thesis"):
        robust = record["tiers"][tier]["robust"]
        assert robust["correct"] == int(flags[f"robust_{tier}"].sum())
        assert robust["accuracy"] == pytest.approx(metrics[f"classification_{tier}"]["accuracy"])
        assert robust["interval"][0] <= robust["accuracy"] <= robust["interval"][1]
    everything = flags["clean_correct"] & flags["robust_strong"] & flags["robust_thesis"] & flags["class_right_parts"]
    assert record["worst_case"]["correct"] <= everything.sum()
    assert sum(row["images"] for row in record["per_class"]) == 14
    weighted = sum(row["images"] * row["robust"] for row in record["per_class"]) / 14
    assert weighted == pytest.approx(record["tiers"]["strong"]["robust"]["accuracy"])
    assert [row["name"] for row in record["per_part"]] == [*PARTS, "background"]
    assert all(row["attacked"] is not None for row in record["per_part"])
    assert sum(row["images"] for row in record["by_size"]) == 13, "one image has no part labels"
    assert record["by_size"][0]["low"] < record["by_size"][-1]["high"] <= 1
    confusion = np.array(record["clean_to_attacked"])
    assert confusion.shape == (len(CLASSES),) * 2 and confusion.sum() == record["clean"]["correct"]
    assert np.trace(confusion) == record["tiers"]["strong"]["robust"]["correct"]
    assert record["convergence"].keys() >= {"eps_curve_1"} and len(record["convergence"]["eps_curve_1"]) == 6
    assert plan_warnings(plan, merged) == []
    files = write_files(tmp_path, "toy", plan, merged, tmp_path / "adversarials_toy")
    assert files == {"flags": "flags_toy.npz", "adversarials": None, "pictures": "pictures_toy.npz"}
    with np.load(tmp_path / files["flags"], allow_pickle=False) as found:
        assert set(found.files) >= {"image_id", "label", "clean_prediction", "attacked_prediction", "object_share"}
        assert np.array_equal(found["robust_strong"], flags["robust_strong"])
    with np.load(tmp_path / files["pictures"], allow_pickle=False) as found:
        count = len(found["image_id"])
        assert 3 <= count <= 12 and len(set(found["image_id"].tolist())) == count
        assert found["clean"].dtype == np.uint8 and found["attacked"].dtype == np.float32
        assert np.abs(found["attacked"] - found["clean"]).max() <= EPS + 1e-3
        assert found["true_parts"].min() == -1 and found["parts_after"].shape == found["true_parts"].shape
        assert found["top3_labels_before"].shape == (count, 3)
        robust = dict(zip(flags["image_id"].tolist(), flags["robust_strong"].tolist(), strict=True))
        for image_id, kind in zip(found["image_id"].tolist(), found["kind"].tolist(), strict=True):
            assert kind == "median" or robust[image_id] == (kind == "robust")
    assert not list(tmp_path.glob("*.tmp"))


def test_attacks_without_gradient_and_unsteady_models_are_named(items, tmp_path, monkeypatch):
    original = SmallPartModel.class_logits
    monkeypatch.setattr(SmallPartModel, "class_logits", lambda self, x, padding=None: 1e8 * original(self, x))
    plan = make_plan(tiers=[Tier("one", "class", {"ce": attack()})], curve={})
    merged, _ = run(tmp_path / "no_gradient", items, plan=plan)
    assert any("all-zero gradient" in sentence for sentence in plan_warnings(plan, merged))
    monkeypatch.undo()
    inference = SmallPartModel.inference

    def unsteady(self, images, padding):
        """When all is scored at last, the attack is forgotten."""
        self.first = getattr(self, "first", {})
        return inference(self, self.first.setdefault(len(images), images), padding)

    monkeypatch.setattr(SmallPartModel, "inference", unsteady)
    merged, _ = run(tmp_path / "unsteady", items, len(items), plan=plan)
    warnings = plan_warnings(plan, merged)
    broken = merged.images["broken_by.one"] >= 0
    assert broken.any() and not holds(merged, plan.first)[broken].any(), "the doubt is the attacker's"
    assert any("scored again" in sentence for sentence in warnings)


def test_padding_is_left_alone(tmp_path):
    items = make_items(SmallPartModel(), padded=True)
    plan = make_plan(save_adversarials="png", curve={})
    run(tmp_path, items, plan=plan)
    by_id = {item["image_id"]: item for item in items}
    for tier in plan.tiers:
        for saved in load_adversarials(tmp_path / "adversarials" / tier.name):
            for image_id, image in zip(saved["image_id"].tolist(), saved["images"], strict=True):
                clean = by_id[image_id]["image"].numpy()
                assert np.array_equal(image[:, -2:], clean[:, -2:])
                assert np.abs(image - clean.astype(np.float32)).max() <= EPS


@pytest.mark.parametrize(("norm", "eps"), [("linf", 8.0), ("linf", 2.5), ("linf", 0.4), ("l2", 20.0)])
def test_rounding_stays_in_the_ball(norm, eps):
    threat = ThreatModel(norm, eps)
    images = torch.randint(0, 256, (20, 3, 6, 6), generator=torch.Generator().manual_seed(0)).float()
    attacked = threat.random_start(images, torch.arange(20))
    rounded = round_into_ball(attacked, images, threat)
    threat.verify(rounded, images)
    assert torch.equal(rounded, rounded.round())
    assert (rounded - attacked).abs().max() <= 1.0
    with pytest.raises(ValueError, match="npz"):
        round_into_ball(attacked, images + 0.5, threat)


def test_impossible_plans():
    with pytest.raises(ValueError, match="different threat models"):
        Tier("mixed", "class", {"a": attack(eps=4.0), "b": attack(eps=8.0)})
    with pytest.raises(ValueError, match=r"TEST\.TIERS\.empty"):
        Tier("empty", "class", {})
    with pytest.raises(ValueError, match="SAVE_ADVERSARIALS"):
        make_plan(save_adversarials="jpg")
    with pytest.raises(ValueError, match="only one"):
        Tier("two", "full", {"js": attack("jensen_shannon"), "pixels": attack("pixel_cross_entropy")})
    js = {"js": attack("jensen_shannon")}
    for clash in (
        [Tier("ce", "class", {"ce": attack(), "other": attack()})],
        [Tier("js", "parts", js)],
        [Tier("js", "full", js), Tier("parts", "parts", js)],
        [Tier("clean", "full", {"clean": attack()})],
    ):
        with pytest.raises(ValueError, match="names of their own"):
            make_plan(tiers=clash)
    assert make_plan(tiers=[Tier("js", "full", js), Tier("ce", "class", {"ce": attack()})]).rows() == [
        "clean",
        "js",
        "ce",
    ]


def test_no_images(tmp_path):
    with pytest.raises(ValueError, match="empty"):
        run(tmp_path, [])
