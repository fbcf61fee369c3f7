"""Named pipes, devices and folders in place of files are refused by name: reading a pipe would wait without end."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from part_robust.config.files import find_config
from part_robust.data.image_file import read_image_file
from part_robust.data.mapper import UnreadableImage, read_image
from part_robust.data.part_json import parse_json
from part_robust.engine.checkpoint import PartCheckpointer
from part_robust.evaluation.adversarials import load_adversarials
from part_robust.evaluation.journal import Journal
from part_robust.evaluation.report import find_records, load_record
from part_robust.utils.errors import UserError
from part_robust.utils.files import check_file, read_json
from part_robust.utils.safe_loading import check_pickle, load_tensors

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="a system without named pipes")


@pytest.fixture
def pipe(tmp_path) -> Path:
    """A pipe that nobody writes to; a test that waits for it is ended by a signal."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    before = signal.signal(signal.SIGALRM, lambda *_: pytest.fail("it waits for the pipe"))
    signal.alarm(20)
    yield path
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def test_kinds(tmp_path, pipe):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("file")
    check_file(tmp_path / "file"), check_file(tmp_path / "link")
    for path, words in ((pipe, "a named pipe"), (tmp_path, "a folder"), (Path("/dev/null"), "a device")):
        with pytest.raises(UserError, match=rf"^{path} must be a file, got {words}$"):
            check_file(path)
    with pytest.raises(FileNotFoundError):
        check_file(tmp_path / "nothing")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OSError, match="loop"):
        check_file(tmp_path / "loop")


@pytest.mark.parametrize(
    "read",
    [
        find_config,
        read_image_file,
        parse_json,
        load_tensors,
        check_pickle,
        load_record,
        lambda path: PartCheckpointer(None).load(str(path)),
        lambda path: read_json(path, "delete it"),
    ],
    ids=["config", "image", "annotations", "weights", "pickle", "record", "checkpoint", "json"],
)
def test_a_pipe_is_refused_by_name(read, pipe):
    with pytest.raises(UserError, match=rf"{pipe} must be .*, got a named pipe"):
        read(pipe)


def test_an_image_of_a_data_set(pipe):
    with pytest.raises(UnreadableImage, match=r"\(image_id 7\): .*pipe must be an image file, got a named pipe"):
        read_image({"file_name": str(pipe), "image_id": 7, "width": 8, "height": 8})


def test_files_that_are_found_in_folders(tmp_path, pipe):
    for name in ("robustness.json", "batch_0.npz"):
        os.mkfifo(tmp_path / name)
    with pytest.raises(UserError, match="got a named pipe"):
        load_record(*find_records([tmp_path]))
    with pytest.raises(UserError, match=r"batch_0\.npz must be a file of attacked images, got a named pipe"):
        list(load_adversarials(tmp_path))
    journal = Journal.open(tmp_path / "journal", {"a": "b"}, resume=False)
    os.mkfifo(tmp_path / "journal" / "batch_0.npz")
    assert journal.batches() == [], "deleted, like other files that cannot be read"
