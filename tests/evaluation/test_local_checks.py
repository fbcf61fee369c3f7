"""Checks of local attacks: a number that is masked inside a region is found, an honest one passes."""

from __future__ import annotations

import pytest
import torch

from part_robust.attacks import attack_mode
from part_robust.evaluation.attacked_batch import AttackedBatch
from part_robust.evaluation.batch_arrays import Merged, describe_batch
from part_robust.evaluation.checks import CheckSettings, merge_checks, record_checks, reportable, run_checks
from part_robust.evaluation.checks.local import check_object
from part_robust.evaluation.local import LocalTier
from part_robust.evaluation.local_record import describe_local
from tests.evaluation import check_models as models
from tests.evaluation.tier_fixture import attack, evaluators

SMALL = CheckSettings(steps=8, long_steps=16, noise_draws=20, directions=3)


def tier(queries: int = 0) -> LocalTier:
    pgd = {"STEPS": 10, "STEP_SIZE": 5.0, "KEEP": "best", "RANDOM_START": False}
    attacks = {"pgd_local": attack(name="PGD", eps=20.0, **pgd)}
    if queries:
        attacks["square_local"] = attack("margin", "Square", eps=20.0, STEPS=queries)
    return LocalTier("local", "local", attacks, regions=("parts", "object", "background"))


def by_id(results):
    return {result.id: result for result in results}


def evaluated(model, chosen):
    """`local` of the record of eight images."""
    items = models.with_objects(model, 8)
    with attack_mode(models.OnItems(model)) as view:
        batch = AttackedBatch(view, items, 1)
        result = chosen.run(batch, lambda _: None, ())
        arrays = describe_batch(batch, {chosen: result}, {}, type(evaluators())([]), ())
    return describe_local(chosen, ["middle"], Merged([arrays]))


def test_a_gradient_that_is_dead_inside_the_object_is_found():
    model = models.DeadInside().eval()
    items, chosen = models.with_objects(model, 8), tier()
    with attack_mode(models.OnItems(model)) as view:
        inside = by_id(check_object(view, items, chosen, 1, False, SMALL))
        images, _ = view.preprocess(items)
        labels = torch.tensor([item["class_id"] for item in items])
        whole = by_id(run_checks(view, images, labels, chosen.attacks["pgd_local"], settings=SMALL))
    assert whole["C7"].status == "pass", "the rest of the image has a gradient"
    assert inside["C7"].status == inside["C6"].status == "fail"
    assert inside["C7"].sentence.startswith("tier local, inside the object: 8 of 8 images have an all-zero gradient")
    assert not reportable(merge_checks(whole.values(), inside.values()))

    local = evaluated(model, chosen)
    rows = {row["region"]: row for row in local["table"]}
    assert rows["object"]["robust"]["correct"] == 8, "the attack finds nothing"
    assert rows["background"]["robust"]["correct"] < 8
    assert [rows[name]["zero_gradient"] for name in ("part:middle", "object", "background")] == [8, 8, 0]
    found = by_id(record_checks({"local": local}))["C7"]
    assert found.status == "fail" and "8 of 8 in part:middle, 8 of 8 in object" in found.sentence


def test_an_honest_model_passes():
    model = models.Honest().eval()
    items, chosen = models.with_objects(model, 8), tier(queries=40)
    with attack_mode(models.OnItems(model)) as view:
        results = by_id(check_object(view, items, chosen, 1, True, SMALL))
    assert set(results) == {"C6", "C7", "C8", "C9", "C13", "C16"}
    assert not [result for result in results.values() if result.status == "fail"]
    local = evaluated(model, chosen)
    rows = {row["region"]: row for row in local["table"]}
    assert rows["object"]["robust"]["correct"] < 8 and rows["object"]["missed"] == 0
    found = by_id(record_checks({"local": local}))
    assert found["C7"].status == found["C9"].status == "pass"


def test_the_audit_finds_what_a_black_box_breaks():
    model = models.DeadInside().eval()
    items, chosen = models.with_objects(model, 8), tier(queries=60)
    with attack_mode(models.OnItems(model)) as view:
        results = by_id(check_object(view, items, chosen, 1, True, SMALL))
    assert results["C13"].status == "fail" and results["C13"].sentence.startswith("tier local, inside the object: ")


@pytest.mark.parametrize(("missed", "status"), [(0, "pass"), (1, "pass"), (3, "fail")])
def test_a_part_that_breaks_more_than_the_object(missed, status):
    rows = [{"region": "part:a", "images": 90, "attacked": 80, "zero_gradient": 0}]
    rows.append({**rows[0], "region": "object", "missed": missed})
    found = by_id(record_checks({"local": {"tier": "local", "table": rows}}))["C9"]
    assert (found.status, found.level) == (status, "warning" if status == "fail" else "error")
    assert f"{missed} of 90 images" in found.sentence


def test_images_without_an_object_are_not_checked():
    model = models.Honest().eval()
    items = [
        {**item, "part_supervision": "none", "sem_seg": torch.full((12, 12), 255)}
        for item in models.with_objects(model, 2)
    ]
    with attack_mode(models.OnItems(model)) as view:
        assert check_object(view, items, tier(), 1, False, SMALL) == []
