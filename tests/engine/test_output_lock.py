"""Two runs never write into one OUTPUT_DIR at the same time."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys

import pytest

from part_robust.engine import setup
from part_robust.engine.output_lock import OutputInUse, lock_output, release_output

# Another process that locks the file in the same way, without an import of torch, which takes seconds.
OTHER = """
import fcntl, json, os, sys
file = open(sys.argv[1] + "/.lock", "a+")
try:
    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
except OSError:
    sys.exit(1)
file.truncate(0)
json.dump({"purpose": "a training", "pid": os.getpid(), "host": "here", "since": "today"}, file)
file.flush()
print("locked", flush=True)
sys.stdin.read()
"""


def start_other(folder) -> subprocess.Popen:
    command = [sys.executable, "-c", OTHER, str(folder)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@pytest.fixture
def holder(tmp_path):
    process = start_other(tmp_path)
    assert process.stdout.readline() == "locked\n"
    yield process
    process.kill()
    process.communicate(timeout=10)


def may_lock(folder) -> bool:
    """Whether another process can lock the folder now."""
    process = start_other(folder)
    process.communicate("", timeout=10)
    return process.returncode == 0


def test_a_folder_in_use_is_refused_before_anything_is_written(holder, toy_data, tmp_path):
    with pytest.raises(OutputInUse, match=rf"in use by a training \(process {holder.pid} on .*Set another OUTPUT_DIR"):
        lock_output(tmp_path, "an evaluation")
    opts = ["DATASETS.TRAIN", ("toy_train",), "MODEL.PART_CLASSIFIER.HEAD", "LinearHead", "MODEL.DEVICE", "cpu"]
    opts += ["OUTPUT_DIR", str(tmp_path)]
    args = argparse.Namespace(config_file="", opts=opts, eval_only=False, resume=False)
    with pytest.raises(OutputInUse):
        setup(args)
    assert os.listdir(tmp_path) == [".lock"]
    holder.kill()
    holder.wait(timeout=10)
    lock_output(tmp_path, "an evaluation")  # the lock of a killed process is free
    release_output(tmp_path)


def test_a_process_may_lock_its_folder_twice_and_another_after_the_release(tmp_path):
    lock_output(tmp_path / "run", "a training")
    lock_output(tmp_path / "run", "an evaluation")
    assert not may_lock(tmp_path / "run")
    release_output(tmp_path / "run")
    assert may_lock(tmp_path / "run")


def test_a_file_is_not_a_folder(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputInUse, match="OUTPUT_DIR must be a folder that can be written"):
        lock_output(tmp_path / "file", "a training")
