"""Tier local: which pixels each attacker may change, and what the numbers by region mean."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detectron2.utils import comm
from hypothesis import given, settings
from hypothesis import strategies as st

from part_robust.attacks import attack_mode
from part_robust.config import get_part_robust_cfg
from part_robust.evaluation.attacked_batch import AttackedBatch
from part_robust.evaluation.checks.add import describe_numbers
from part_robust.evaluation.journal import Journal
from part_robust.evaluation.local import LocalTier
from part_robust.evaluation.local_record import describe_local, local_arrays, local_warnings
from part_robust.evaluation.named_arrays import ClassArrays
from part_robust.evaluation.plan import build_tiers
from part_robust.evaluation.record import describe_evaluation, flags_of, holds, metrics_of, write_files
from part_robust.evaluation.regions import in_one_region, labelled_regions, patch_regions, region_names, region_numbers
from part_robust.evaluation.siblings import transfer
from part_robust.modeling.counts import with_counts
from part_robust.run_config import complete
from part_robust.utils.errors import UserError
from tests.evaluation.local_fixture import local_plan, local_tier, some_items
from tests.evaluation.tier_fixture import PARTS, SIZE, SmallPartModel, evaluators, make_items, make_plan, run
from tests.processes import start_two
from tests.toy import tiny_cfg


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(merged, plan, record, folder) of all items in batches of 5."""
    items, folder = some_items(), tmp_path_factory.mktemp("local")
    merged, plan = run(folder, items, plan=local_plan(items))
    return merged, plan, describe_evaluation(plan, merged, metrics_of(plan, merged, evaluators()), "CPU"), folder


def results(plan, merged):
    """Everything that must be the same for any batch size, order and number of processes."""
    arrays = local_arrays(plan.tiers[1], PARTS, merged)
    return {name: array for name, array in arrays.items() if not name.startswith("picture_")} | flags_of(plan, merged)


def same(first, second):
    assert first.keys() == second.keys()
    for name in first:
        if first[name].dtype.kind == "U":
            assert (first[name] == second[name]).all()
        else:
            np.testing.assert_allclose(second[name], first[name], rtol=1e-4, atol=1e-4, err_msg=name)


@pytest.mark.parametrize("batch_size", [1, 4, 14])
def test_batch_size_and_order_do_not_matter(batch_size, whole, tmp_path):
    items = some_items()
    merged, plan = run(tmp_path, items[::-1], batch_size, plan=local_plan(items))
    same(results(whole[1], whole[0]), results(plan, merged))


def _one_of_two(folder: str) -> None:
    items = some_items()
    merged, plan = run(Path(folder), items, 3, plan=local_plan(items), rank=comm.get_rank(), world=2)
    if merged is not None:
        np.savez(Path(folder) / "results.npz", **results(plan, merged))


def test_two_processes(whole, tmp_path):
    start_two(_one_of_two, (str(tmp_path),))
    with np.load(tmp_path / "results.npz") as found:
        same(results(whole[1], whole[0]), dict(found))


def test_an_interrupted_evaluation_goes_on(whole, tmp_path):
    items = some_items()
    run(tmp_path, items[:5], plan=local_plan(items))
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "journal").glob("batch_*")}
    merged, plan = run(tmp_path, items, plan=local_plan(items))
    assert len(Journal(tmp_path / "journal").batches()) == 3
    assert all((tmp_path / "journal" / name).stat().st_mtime_ns == time for name, time in before.items())
    same(results(whole[1], whole[0]), results(plan, merged))


def test_regions_of_an_image_are_those_of_its_labels():
    items = some_items()
    for kinds in (("parts",), ("object", "background"), ("parts", "object", "background")):
        found = {}
        for group in labelled_regions(items, len(PARTS), kinds, torch.device("cpu")):
            for place, (row, region) in enumerate(zip(group.rows.tolist(), group.regions.tolist(), strict=True)):
                assert (row, region) not in found
                found[row, region] = group.masks[0][place, 0]
        expected = {}
        for row, item in enumerate(items):
            labels, complete = item["sem_seg"], item["part_supervision"] == "full"
            for part in range(len(PARTS)):
                if "parts" in kinds and (labels == part).any():
                    expected[row, part] = labels == part
            inside = labels < len(PARTS)
            if "object" in kinds and complete and inside.any():
                expected[row, len(PARTS)] = inside
                expected[row, len(PARTS) + 1] = labels == len(PARTS)
        expected = {key: mask for key, mask in expected.items() if mask.any()}
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key]) for key in found)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 4))
def test_changes_in_one_region_and_in_two(seed, side):
    """Every region that can be attacked contains itself, and one more pixel of another label is found."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 4, (3, 6, 7), generator=generator)
    items = [{"sem_seg": label, "part_supervision": "full"} for label in labels]
    for group in labelled_regions(items, 3, ("parts", "object", "background"), torch.device("cpu")):
        changed, own = group.masks[0][:, 0], labels[group.rows]
        kind = ["parts"] * 3 + ["object", "background"]
        kinds = [kind[int(group.regions[0])]]
        assert in_one_region(changed, own, 3, kinds, ()).all()
        outside = own == 3 if kinds == ["object"] else own < 3 if kinds == ["background"] else own == 3
        row = int(torch.randint(0, len(changed), (), generator=generator))
        if outside[row].any() and changed[row].any():
            first = outside[row].nonzero()[0]
            more = changed.clone()
            more[row, first[0], first[1]] = True
            assert not in_one_region(more, own, 3, kinds, ())[row]
    patch = torch.zeros(3, 6, 7, dtype=torch.bool)
    patch[:, 1 : 1 + side, 2 : 2 + side] = True
    assert in_one_region(patch, labels, 3, ["patch"], [side]).all()
    patch[1, 1 + side, 2] = True
    assert in_one_region(patch, labels, 3, ["patch"], [1, side]).tolist() == [True, False, True]
    assert in_one_region(torch.zeros_like(patch), labels, 3, (), ()).all()


def test_data_without_parts_has_patches_alone():
    items = [{**item, "sem_seg": torch.zeros(SIZE, SIZE, dtype=torch.long)} for item in some_items()[:2]]
    assert not list(labelled_regions(items, 0, ("parts", "object", "background"), torch.device("cpu")))
    assert region_numbers(("parts", "patch"), 0, 1) == [2] and region_names((), (4,))[2] == "patch:4px"


def test_names_and_numbers_of_regions():
    names = region_names(PARTS, (3, 5))
    assert names == ["part:x", "part:y", "object", "background", "patch:3px", "patch:5px"]
    assert [names[number] for number in region_numbers(("patch", "object"), 2, 2)] == ["object", *names[4:]]


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 8), st.integers(1, 6), st.integers(0, 10**6), st.booleans())
def test_patches_lie_in_the_image_and_apart(side, count, seed, padded):
    generator = torch.Generator().manual_seed(seed)
    importance = torch.rand(3, 8, 11, generator=generator)
    padding = torch.zeros(3, 8, 11, dtype=torch.bool)
    padding[1, 5:] = padding[2, :, 9:] = padded
    keys = torch.arange(3) + seed
    found = patch_regions(importance, padding, keys, 7, side, count)
    rows = [0, 2] if padded and side > 5 else [0, 1, 2]
    assert found.rows.tolist() == rows and set(found.regions.tolist()) == {7}
    for place, row in enumerate(rows):
        for number, mask in enumerate(found.masks):
            top, left = found.corners[place, number].tolist()
            expected = torch.zeros(8, 11, dtype=torch.bool)
            expected[top : top + side, left : left + side] = True
            assert torch.equal(mask[place, 0], expected) and int(expected.sum()) == side * side
            assert not (mask[place, 0] & padding[row]).any()
        sums = importance[row].masked_fill(padding[row], -1e3).unfold(0, side, 1).unfold(1, side, 1).sum(dim=(2, 3))
        top, left = found.corners[place, 0].tolist()
        assert sums[top, left] == pytest.approx(float(sums.max()), rel=1e-4)
        if count > 1 and 2 * side <= 8 and count <= 3:
            steps = (found.corners[place, 1:] - found.corners[place, :1]).abs().amax(dim=1)
            assert (2 * steps >= side).all()


def test_no_patch_where_there_is_no_room():
    keys = torch.arange(2)
    assert patch_regions(torch.rand(2, 4, 4), None, keys, 0, 5, 2) is None
    assert patch_regions(torch.rand(2, 4, 4), torch.ones(2, 4, 4, dtype=torch.bool), keys, 0, 2, 2) is None


class OneCorner(SmallPartModel):
    """Reads the class from the corner at the bottom right alone."""

    def class_logits(self, images, padding=None):
        shown = torch.zeros(SIZE, SIZE)
        shown[-2:, -2:] = 1
        level = ((images - 128) * shown).mean(dim=(1, 2, 3))
        return torch.stack([level, -level, 0 * level - 50, 0 * level - 50], dim=1)


def test_the_patch_goes_where_the_class_is_read():
    model = OneCorner()
    items = make_items(model)
    with attack_mode(model) as inner:
        batch = AttackedBatch(inner, items, len(PARTS))
        tier = local_tier(regions=("patch",), patch_sides=(2,), patch_positions=1)
        result = tier.run(batch, lambda _: None, ())
    right = torch.tensor(
        [
            bool(output["class_logits"].argmax() == item["class_id"])
            for output, item in zip(batch.clean, items, strict=True)
        ]
    )
    corners = np.stack([result.arrays["regions.local.top"], result.arrays["regions.local.left"]], axis=1)
    assert (corners == SIZE - 2).all()
    moved = (result.images != batch.images).any(dim=1)
    assert not moved[:, :-2].any() and not moved[:, :, :-2].any()
    assert right.any() and moved[right].any()


def test_every_attacked_image_differs_inside_its_region_alone(whole):
    arrays = local_arrays(whole[1].tiers[1], PARTS, whole[0])
    changed = (arrays["picture_clean"] != arrays["picture_attacked"]).any(axis=1)
    assert changed.any() and not (changed & ~arrays["picture_mask"]).any()
    names = arrays["names"][arrays["picture_region"]].tolist()
    assert {"part:x", "part:y", "object", "background", "patch:3px"} <= set(names)
    assert names == sorted(names, key=arrays["names"].tolist().index), "in the order of the table"


def test_images_without_the_region_are_counted_apart(whole):
    merged, _, record, _ = whole
    clean = merged.read(ClassArrays, "clean").prediction == merged.image.label
    rows = {row["region"]: row for row in record["local"]["table"]}
    # Image 3 has no labels, the last but one no complete ones, the last no part.
    assert {name: row["without"] for name, row in rows.items()} == {
        "part:x": 2,
        "part:y": 3,
        "object": 3,
        "background": 3,
        "patch:3px": 0,
    }
    for row in rows.values():
        assert row["images"] + row["without"] == len(merged)
        assert row["robust"]["correct"] <= row["clean"]["correct"] <= row["images"]
        others = int(clean.sum()) - row["clean"]["correct"]
        assert row["all_images"]["correct"] == row["robust"]["correct"] + others
        assert sum(row["broken_by"].values()) + row["robust"]["correct"] == row["attacked"] == row["clean"]["correct"]
    worst = record["local"]["worst"]
    assert worst["robust"]["correct"] <= min(row["robust"]["correct"] for row in rows.values() if row["images"] == 14)
    assert worst["all_images"]["correct"] == record["tiers"]["local"]["robust"]["correct"]
    assert record["tiers"]["local"]["regions"] == ["parts", "object", "background", "patch"]
    part = record["local"]["worst_part"]
    assert part["images"] == 12 and part["without"] == 2
    assert worst["robust"]["correct"] <= part["robust"]["correct"] <= rows["part:x"]["robust"]["correct"]
    assert 0 < worst["robust"]["correct"] < worst["clean"]["correct"], "the toy must tell the two apart"


def test_worst_case_of_the_tier_is_over_the_regions(whole):
    merged, plan, _, _ = whole
    arrays, flags = local_arrays(plan.tiers[1], PARTS, merged), flags_of(plan, merged)
    broken = set(arrays["image_id"][arrays["broken_by"] >= 0].tolist())
    robust = dict(zip(flags["image_id"].tolist(), holds(merged, plan.tiers[1]).tolist(), strict=True))
    clean = dict(zip(flags["image_id"].tolist(), flags["clean_correct"].tolist(), strict=True))
    assert robust == {image_id: clean[image_id] and image_id not in broken for image_id in robust}


def test_alone_it_is_the_headline_and_takes_no_images_of_others(tmp_path):
    """Images that other models' attackers made keep to no mask."""
    items = some_items()[:3]
    plan = make_plan(tiers=[local_tier(patch_sides=())], sample=(), curve={})
    merged, _ = run(tmp_path, items, plan=plan)
    record = describe_evaluation(plan, merged, metrics_of(plan, merged, evaluators()), "CPU")
    assert record["headline"] == "local" and record["worst_case"] == record["tiers"]["local"]["robust"]
    assert transfer(SimpleNamespace(plan=plan, merged=merged), "checkpoint") is None
    assert "inside one region" in describe_numbers("toy", record)


def test_what_a_part_loses_the_object_loses(whole):
    merged, plan, _, _ = whole
    tier, forged = plan.tiers[1], dict.fromkeys(["broken_by"])
    batches = [dict(batch) for batch in merged.batches]
    for batch in batches:
        own = batch["regions.local.region"] == len(PARTS)
        forged["broken_by"] = batch["regions.local.broken_by"].copy()
        forged["broken_by"][own] = -1  # the attack on the object has found nothing
        batch["regions.local.broken_by"] = forged["broken_by"]
    rows = {row["region"]: row for row in describe_local(tier, PARTS, type(merged)(batches))["table"]}
    assert rows["object"]["missed"] == rows["object"]["clean"]["correct"] - rows["object"]["robust"]["correct"] > 0


def test_greyed_regions(whole):
    merged, plan, record, _ = whole
    model, items = SmallPartModel(), some_items()
    rows = {row["region"]: row for row in record["local"]["table"]}
    assert rows["patch:3px"]["greyed"] is None
    grey = torch.tensor(plan.tiers[1].grey).view(3, 1, 1)
    for name, inside in (
        ("object", lambda m: m < len(PARTS)),
        ("background", lambda m: m == len(PARTS)),
        ("part:y", lambda m: m == 1),
    ):
        right = 0
        for item in items:
            known = item["part_supervision"] == "full" or name == "part:y"
            mask = inside(item["sem_seg"]) & known
            if mask.any() and (name == "part:y" or (item["sem_seg"] < len(PARTS)).any()):
                image = torch.where(mask, grey, item["image"].float())
                right += int(model.class_logits(image[None]).argmax()) == item["class_id"]
        assert rows[name]["greyed"]["correct"] == right, name


def test_the_config_says_what_is_attacked(toy_data):
    cfg = tiny_cfg("deeplab_two_headed", "TEST.TIER", "local,screen", "TEST.EPS", 4.0, "TEST.LOCAL.EPS", 80.0)
    screen, tier = build_tiers(with_counts(cfg))
    assert screen.threat_model.eps == 4.0
    assert isinstance(tier, LocalTier) and tier.threat_model.describe()["eps"] == 80.0
    assert list(tier.attacks) == ["apgd_ce_local", "apgd_t_local", "square1000_local"]
    assert tier.attacks["apgd_ce_local"].record_history and tier.attacks["square1000_local"].steps == 1000
    assert tier.describe() == {
        "regions": ["parts", "object", "background", "patch"],
        "patch_sides": [5],
        "patch_positions": 4,
        "grey": [123.675, 116.28, 103.53],
    }


@pytest.mark.parametrize(
    ("model", "opts", "message"),
    [
        (
            "deeplab_two_headed",
            ["TEST.TIERS.local", ["apgd_ce", "sea_js"]],
            "must name attacks on the class, got sea_js",
        ),
        ("deeplab_segmenter", [], "this model has no class head"),
        ("resnet", ["TEST.LOCAL.REGIONS", ["patch"], "TEST.LOCAL.PATCH_SIDES", ()], "PATCH_SIDES must name a side"),
    ],
)
def test_a_tier_that_cannot_be(model, opts, message, toy_data):
    with pytest.raises(UserError, match=message):
        build_tiers(with_counts(tiny_cfg(model, "TEST.TIER", "local", *opts)))


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("REGIONS", ["wheel"], "one or more of parts, object, background and patch"),
        ("PATCH_SIDES", (1.5,), "shares of the image's side"),
        ("PATCH_POSITIONS", 0, "at least 1"),
        ("EPS", 300.0, "at most 255"),
    ],
)
def test_wrong_values_are_refused(key, value, words):
    with pytest.raises(UserError, match=f"TEST.LOCAL.{key} must be .*{words}"):
        complete(get_part_robust_cfg(opts=[f"TEST.LOCAL.{key}", value]))


def test_files_and_warnings(whole):
    merged, plan, record, folder = whole
    files = write_files(folder, "toy", plan, merged, folder / "adversarials")
    with np.load(folder / files["local"]) as found:
        assert {"names", "region", "broken_by", "picture_mask"} <= set(found.files)
    json.dumps(record)
    rows = [{"region": f"part:{name}", "images": 0} for name in "abcdefg"]
    empty = {**record["local"], "table": [{"region": "object", "images": 9}, *rows], "worst": {"without": 3}}
    assert local_warnings(empty) == [
        "local: no image has part:a, part:b, part:c, part:d, part:e and 2 more, so nothing is known of attacks there",
        "local: 3 images have none of the attacked regions; they count as not attacked, and that they are right is not "
        "evidence of robustness",
    ]
