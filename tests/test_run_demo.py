"""`make demo`, shortened: few lines, a table, a picture and a report; again at once; and a step that fails."""

from __future__ import annotations

from pathlib import Path

import pytest
from detectron2.utils.logger import _cached_log_stream

from part_robust.cli import run_demo
from part_robust.data.part_shapes import make_part_shapes
from part_robust.engine.run_log import close_log
from part_robust.runs.passes import expected_passes, passes_counted
from tests.commands import exit_code
from tests.data.builtin_names import builtin_below

COUNTS = {"train": 12, "val": 4, "test": 6}
SHORT = [
    *("SOLVER.EPOCHS", "0", "SOLVER.MAX_ITER", "2", "SOLVER.IMS_PER_BATCH", "4", "TEST.EVAL_PERIOD", "2"),
    *("INPUT.SIZE", "32", "INPUT.TEST_RESIZE", "32", "DATALOADER.NUM_WORKERS", "0", "ATTACK.SPECS.pgd20.STEPS", "2"),
]


@pytest.fixture(scope="module")
def datasets(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("datasets")
    make_part_shapes(folder / "part_shapes", COUNTS, image_size=32)
    return folder


@pytest.fixture
def demo(datasets, tmp_path, monkeypatch):
    """Runs the demo on the small data in an empty folder; returns its exit code."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(datasets))
    monkeypatch.setattr(run_demo, "make_part_shapes", lambda root: make_part_shapes(root, COUNTS, image_size=32))
    monkeypatch.chdir(tmp_path)
    # It knows open files by their path, relative to the folder of an earlier test.
    _cached_log_stream.cache_clear()
    with builtin_below(datasets):
        yield lambda *opts: exit_code(run_demo.main, [*SHORT, *opts])
    close_log()


def test_few_lines_a_table_a_picture_and_a_report(demo, capfd):
    assert demo() == 0
    printed, errors = capfd.readouterr()
    lines = printed.splitlines()
    assert len(lines) < 80 and not errors, printed
    output = Path("output/part_shapes")
    table = (output / "table.md").read_text()
    assert table in printed and len(table.splitlines()) == 6 and "PGD-2, L-inf 8/255" in table
    assert [line[:5] for line in lines if line.startswith("[")] == ["[1/4]", "[2/4]", "[3/4]", "[4/4]"]
    assert sum(line.endswith(" left") for line in lines) == 3, "none after the last one"
    (report,) = (line.split()[1] for line in lines if line.startswith("report: "))
    best = Path(report).parent
    assert Path(report).name == "report.html" and (best / "robustness.json").is_file() and best.parent == output
    assert f"picture: {output}/attack.png" in lines and (output / "attack.png").is_file()
    for folder in output.iterdir():
        if folder.is_dir():
            log = (folder / "log.txt").read_text()
            assert "Running with full config" in log and "total_loss" in log and f"log in {folder}/log.txt" in printed

    with passes_counted(lambda images: pytest.fail("it is finished")):
        run_demo.execute(run_demo.demo_runs(SHORT), [1] * 4)
    assert capfd.readouterr().out.count("done before: clean accuracy") == 4


def test_a_step_that_fails_names_its_log(demo, capfd):
    assert demo("SOLVER.BASE_LR", "1e30") == 1
    printed, errors = capfd.readouterr()
    log = Path("output/part_shapes/resnet50/log.txt")
    assert errors.startswith("ResNet, no parts, clean training failed: NonFiniteStep: iteration 1: the loss or a")
    assert errors.endswith(f"The whole log: {log}\n") and len(errors.splitlines()) == 1
    assert "Traceback" not in printed and "Traceback" in log.read_text()


def test_expected_passes_are_those_that_are_made(demo):
    """Unless attacks leave out images that they have finished."""
    opts = [*SHORT, "ATTACK.SPECS.pgd20.EARLY_STOP", "False", "MODEL.WEIGHTS", ""]
    run = run_demo.demo_runs(opts)[1]
    made = []
    with passes_counted(made.append):
        run.execute()
    assert sum(made) == expected_passes(run.complete_config()) and run.output.name == "resnet50_adv"
