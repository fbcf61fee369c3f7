"""What became of the parts that were found without attack."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from detectron2.evaluation import DatasetEvaluators
from detectron2.utils import comm
from hypothesis import given, settings
from hypothesis import strategies as st

from part_robust.attacks import build_attack
from part_robust.evaluation import PartDetectionEvaluator, PartSegmentationEvaluator
from part_robust.evaluation.image_parts import ImageParts
from part_robust.evaluation.lost_parts import (
    BADLY_PLACED,
    FOUND,
    MISSED,
    WRONG_PART,
    box_parts,
    count_lost_parts,
    part_results,
)
from part_robust.evaluation.plan import Plan
from part_robust.evaluation.record import describe_evaluation, metrics_of
from part_robust.evaluation.tiers import Tier
from part_robust.utils.files import read_json, write_json
from tests.evaluation.tier_fixture import run
from tests.processes import start_two
from tests.toy_detector import PARTS, build_toy_detector, detector_items

BOX = (0.0, 0.0, 20.0, 20.0)


def image(true=(), classes=(), parts=(), found=(), scores=None):
    boxes = [np.array(part, dtype=float).reshape(-1, 4) for part in (true, parts)]
    scores = np.full(len(boxes[1]), 0.9) if scores is None else np.array(scores)
    return ImageParts(boxes[0], np.array(classes, dtype=int), boxes[1], np.array(found, dtype=int), scores)


@pytest.mark.parametrize(
    ("parts", "found", "scores", "expected"),
    [
        ([BOX], [0], None, FOUND),
        ([(0, 0, 20, 10)], [0], None, FOUND),  # IoU 0.5
        ([(0, 0, 20, 9.9)], [0], None, BADLY_PLACED),
        ([(0, 0, 20, 2)], [0], None, BADLY_PLACED),  # IoU 0.1
        ([(0, 0, 20, 1.9)], [0], None, MISSED),
        ([BOX], [1], None, WRONG_PART),
        ([(0, 0, 20, 9.9)], [1], None, MISSED),
        ([(0, 0, 20, 9.9), BOX], [0, 1], None, WRONG_PART),
        ([BOX, BOX], [1, 0], [0.9, 0.2], FOUND),
        ([BOX, BOX], [1, 0], [0.9, 0.19], WRONG_PART),  # what no label map shows was not found
        ([BOX], [0], [0.1], MISSED),
        ([], [], None, MISSED),
        ([(3, 3, 3, 3)], [0], None, MISSED),
    ],
)
def test_one_part(parts, found, scores, expected):
    assert part_results(image([BOX], [0], parts, found, scores)).tolist() == [expected]


def test_nothing_to_find_and_a_part_without_area():
    assert part_results(image([], [], [BOX], [0])).tolist() == []
    assert part_results(image([(5, 5, 5, 5)], [0], [(5, 5, 5, 5)], [0])).tolist() == [MISSED]


corner = st.tuples(*[st.integers(0, 6)] * 2, *[st.integers(1, 6)] * 2).map(
    lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3])
)
label = st.integers(0, 1)


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.tuples(corner, label), max_size=4),
    *[st.lists(st.tuples(corner, label, st.floats(0, 1)), max_size=5)] * 2,
    st.randoms(),
)
def test_counts_add_up_and_order_does_not_matter(true, before, after, random):
    def made(predictions):
        return image([t[0] for t in true], [t[1] for t in true], *zip(*predictions, strict=True) if predictions else ())

    clean, attacked = made(before), made(after)
    counts = count_lost_parts({7: clean, 9: clean}, {7: attacked, 9: clean})
    assert counts["lost"] == counts["missed"] + counts["wrong_part"] + counts["badly_placed"]
    found = int((part_results(clean) == FOUND).sum())
    assert (counts["parts"], counts["found"]) == (2 * len(true), 2 * found)
    assert counts["lost"] == int(((part_results(clean) == FOUND) & (part_results(attacked) != FOUND)).sum())
    random.shuffle(after)
    assert part_results(made(after)).tolist() == part_results(attacked).tolist()


ATTACKS = {"hide": "hide_parts", "class": "part_class_loss", "box": "part_box_loss"}


def evaluate(folder, batch_size=2, rank=0, world=1, reverse=False):
    """Lost parts of each attack, and of the worst case, in the record of the toy detector."""
    node = {"NAME": "APGD", "EPS": 12.0, "STEPS": 8, "RANDOM_START": False}
    attacks = {name: build_attack({**node, "OBJECTIVE": objective}) for name, objective in ATTACKS.items()}
    plan = Plan(tiers=[Tier("parts", "parts", attacks)], class_names=("a",), part_names=PARTS)
    evaluators = DatasetEvaluators([PartSegmentationEvaluator(PARTS), PartDetectionEvaluator(PARTS)])
    items = detector_items()[::-1] if reverse else detector_items()
    merged, _ = run(folder, items, batch_size, plan, rank, world, build_toy_detector(), evaluators)
    if merged is None:
        return None
    return describe_evaluation(plan, merged, metrics_of(plan, merged, evaluators), "CPU")["tiers"]["parts"][
        "lost_parts"
    ]


@pytest.fixture(scope="module")
def lost(tmp_path_factory):
    return evaluate(tmp_path_factory.mktemp("lost"))


def test_each_objective_loses_parts_in_its_own_way(lost):
    rows = {row["attack"]: row for row in lost}
    assert list(rows) == ["parts", *ATTACKS]
    # Four labelled images of two parts each, all found.
    assert all((row["parts"], row["found"]) == (8, 8) for row in lost)
    kinds = {name: tuple(rows[name][kind] for kind in ("missed", "wrong_part", "badly_placed")) for name in rows}
    assert kinds["hide"] == (8, 0, 0)
    assert kinds["class"] == (0, 0, 0), "a sure wrong label beside the right one, which is still found"
    assert kinds["box"] == (0, 0, 8)
    assert rows["parts"]["lost"] >= 1


def _one_of_two(folder: str) -> None:
    found = evaluate(Path(folder), 1, rank=comm.get_rank(), world=2)
    if comm.is_main_process():
        write_json(Path(folder) / "lost.json", {"lost": found})


def test_the_same_in_any_batches_and_processes(lost, tmp_path):
    assert evaluate(tmp_path / "five", 5, reverse=True) == lost
    assert evaluate(tmp_path / "five") == lost, "of batches that were read again"
    start_two(_one_of_two, (str(tmp_path),))
    assert read_json(tmp_path / "lost.json", "")["lost"] == lost


def test_without_an_evaluator_of_boxes_nothing_is_known():
    assert box_parts([{"evaluators.clean.0.entries": np.zeros(3)}], "clean") == {}
