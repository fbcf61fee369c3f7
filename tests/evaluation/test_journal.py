"""Finished batches of an evaluation on disk: an interrupted one continues, and another one's are not read."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from part_robust.evaluation.journal import Journal, JournalMismatch
from part_robust.evaluation.record import describe_evaluation, metrics_of
from tests.evaluation.tier_fixture import SmallPartModel, evaluators, make_items, run, same_flags

ROOT = Path(__file__).resolve().parent.parent.parent


def test_journal(tmp_path, caplog):
    folder = tmp_path / "journal"
    journal = Journal.open(folder, {"checkpoint": "a", "images": "b"}, resume=True)
    journal.write({"images.image_id": np.arange(3)}, [0, 1, 2])
    (folder / "half.tmp").write_bytes(b"PK")
    assert len(Journal.open(folder, {"checkpoint": "a", "images": "b"}, resume=True).batches()) == 1
    assert not (folder / "half.tmp").exists()
    with pytest.raises(JournalMismatch, match=r"checkpoint changed.*--resume"):
        Journal.open(folder, {"checkpoint": "c", "images": "b"}, resume=True)
    assert len(journal.batches()) == 1, "refusing touches nothing"
    # Without --resume the work of hours is not lost.
    assert Journal.open(folder, {"checkpoint": "c"}, resume=False).batches() == []
    assert len(Journal(tmp_path / "journal.previous").batches()) == 1
    assert "journal.previous" in caplog.text
    (folder / "batch_broken.npz").write_bytes(b"PK\x03\x04 cut short")
    np.savez(folder / "batch_edited.npz", value=np.array(3))
    assert Journal(folder).batches() == [] and caplog.text.count("evaluated again") == 2
    assert not list(folder.glob("batch_*.npz"))


def test_batches_of_another_evaluation_in_the_same_folder_are_not_read(tmp_path, caplog):
    """Two evaluations that write into one folder at the same time: each finds its own batches alone."""
    first = Journal.open(tmp_path, {"checkpoint": "a"}, resume=False)
    second = Journal(tmp_path, {"checkpoint": "b"})
    for journal, value in ((first, 1), (second, 2)):
        journal.write({"images.image_id": np.array([7, 8]), "value": np.array(value)}, [7, 8])
    assert [int(batch["value"]) for batch in first.batches()] == [1]
    assert [int(batch["value"]) for batch in second.batches()] == [2]
    assert "1 batches are of another evaluation" in caplog.text
    np.savez(tmp_path / "batch_old.npz", **{"images.image_id": np.array([9]), "value": np.array(3)})
    assert sorted(int(batch["value"]) for batch in first.batches()) == [1, 3], "earlier versions wrote no identity"


def test_interrupted_by_hand(items, tmp_path, caplog, monkeypatch):
    calls = []
    original = SmallPartModel.preprocess

    def stop(self, batch):
        calls.append(1)
        if len(list((tmp_path / "journal").glob("batch_*"))) == 1:
            raise KeyboardInterrupt
        return original(self, batch)

    monkeypatch.setattr(SmallPartModel, "preprocess", stop)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, items)
    assert "--resume continues" in caplog.text
    monkeypatch.undo()
    assert len(run(tmp_path, items)[0]) == 14


def test_kill_and_resume(whole, tmp_path):
    """kill -9 in the middle of a batch; the resumed run repeats that batch alone and gives the same record."""
    script = tmp_path / "run.py"
    script.write_text(
        "import sys, time, torch\n"
        "from pathlib import Path\n"
        "from tests.evaluation import tier_fixture as t\n"
        "torch.set_num_threads(1)\n"
        "original = t.SmallPartModel.preprocess\n"
        "t.SmallPartModel.preprocess = lambda *a: time.sleep(0.02) or original(*a)\n"
        f"t.run(Path({str(tmp_path)!r}), t.make_items(t.SmallPartModel()), 3)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, str(script)], env=environment, stderr=subprocess.DEVNULL)
    deadline = time.time() + 120
    while len(list((tmp_path / "journal").glob("batch_*.npz"))) < 2 and time.time() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "journal").glob("batch_*.npz")}
    assert 2 <= len(before) < 5, "killed too late to test anything"
    again = run(tmp_path, make_items(SmallPartModel()), 3)
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "journal").glob("batch_*.npz")}
    assert len(after) == 5 and all(after[name] == stamp for name, stamp in before.items())
    same_flags(whole[:2], again)
    metrics = metrics_of(again[1], again[0], evaluators())
    record = describe_evaluation(again[1], again[0], metrics, "CPU")
    for name in (
        "clean",
        "worst_case",
        "eps_curve",
        "per_class",
        "per_part",
        "by_size",
        "clean_to_attacked",
        "forwards",
    ):
        assert record[name] == pytest.approx(whole[3][name]) if name == "forwards" else record[name] == whole[3][name]
