"""What a run prints on the terminal, and that log.txt has the rest."""

from __future__ import annotations

import logging
import warnings

import pytest
from detectron2.engine import default_argument_parser

from part_robust.engine.run_log import changed_keys, close_log, start_log
from tests.toy import tiny_cfg

ARGS = default_argument_parser().parse_args([])


@pytest.fixture(autouse=True)
def _own_logs():
    """An earlier run in this process may have left its log, and this one must not."""
    close_log()
    yield
    close_log()


def test_the_terminal_has_what_differs_and_the_log_everything(tmp_path, capsys):
    cfg = tiny_cfg("resnet", "OUTPUT_DIR", str(tmp_path), "SOLVER.LR_SCHEDULER_NAME", "")
    start_log(cfg, ARGS)
    printed, log = capsys.readouterr().out, (tmp_path / "log.txt").read_text()
    keys = [line[2:] for line in printed.splitlines() if line.startswith("  ")]
    assert keys == changed_keys(cfg)
    assert {"SOLVER.IMS_PER_BATCH 4", "SOLVER.LR_SCHEDULER_NAME ''", f"OUTPUT_DIR {tmp_path}"} <= set(keys)
    assert "MODEL.PIXEL_MEAN" not in printed and len(printed.splitlines()) == len(keys) + 3
    assert f"All keys: {tmp_path}/config.yaml. The whole log: {tmp_path}/log.txt" in printed
    assert "Running with full config" in log and "Environment:" in log and "PIXEL_MEAN" in log
    assert all(f"  {key}\n" in log for key in keys)


def test_details_and_warnings_of_libraries_are_in_the_log_alone(tmp_path, capsys):
    start_log(tiny_cfg("resnet", "OUTPUT_DIR", str(tmp_path)), ARGS)
    capsys.readouterr()
    logging.getLogger("detectron2.engine.defaults").info("the model, layer by layer")
    logging.getLogger("torch.utils.something").warning("of no use to a user")
    warnings.warn("an argument will be renamed", FutureWarning, stacklevel=1)
    logging.getLogger("detectron2.engine.train_loop").error("a crash", exc_info=ValueError("why"))
    logging.getLogger("detectron2.data.build").warning("a warning about the data")
    logging.getLogger("detectron2.utils.events").info("iter: 19")
    logging.getLogger("part_robust.engine.trainer").info("of ours")
    printed, errors = capsys.readouterr()
    words = ["a warning about the data", "iter: 19", "of ours"]
    hidden = [
        "the model, layer by layer",
        "ValueError: why",
        "of no use to a user",
        "FutureWarning: an argument will be renamed",
    ]
    assert all(word in printed for word in words) and len(printed.splitlines()) == len(words) and not errors
    log = (tmp_path / "log.txt").read_text()
    assert all(log.count(word) == 1 for word in words + hidden)


def test_handlers_of_a_program_around_it_stay_as_they_are(tmp_path, caplog):
    for name in ("torch", "py.warnings"):
        logging.getLogger(name).addHandler(caplog.handler)
    start_log(tiny_cfg("resnet", "OUTPUT_DIR", str(tmp_path)), ARGS)
    close_log()
    logging.getLogger("part_robust.x").warning("after the run")
    assert "after the run" in caplog.text and logging.getLogger("part_robust").handlers == []
    for name in ("torch", "py.warnings"):
        logging.getLogger(name).removeHandler(caplog.handler)


def test_a_level_and_a_second_run_in_the_process(tmp_path, capsys):
    first, second = (tiny_cfg("resnet", "OUTPUT_DIR", str(tmp_path / name)) for name in ("one", "two"))
    start_log(first, ARGS)
    before = (tmp_path / "one" / "log.txt").read_text()
    capsys.readouterr()
    start_log(second, ARGS, logging.WARNING)
    logging.getLogger("part_robust.x").info("progress")
    logging.getLogger("part_robust.x").warning("look at this")
    logging.getLogger("torch.x").warning("of no use")
    (line,) = capsys.readouterr().out.splitlines()
    assert "look at this" in line
    assert (tmp_path / "one" / "log.txt").read_text() == before
    log = (tmp_path / "two" / "log.txt").read_text()
    assert all(log.count(word) == 1 for word in ("progress", "look at this", "of no use", "Running with full config"))
