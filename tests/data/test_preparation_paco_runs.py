"""PACO preparation as a process: any number of workers, kill -9, what is refused, what is said early."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from part_robust.data.preparation import pipeline
from part_robust.data.preparation.paco import PacoOptions, count_paco, prepare_paco
from part_robust.data.preparation.paco_files import find_annotation_files, search_roots
from tests.data.paco_fixture import write_paco
from tests.data.paco_runs import ALLOW, contents, killed_after, report, run

# pycocotools 2.0.11 under NumPy 2
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return write_paco(tmp_path_factory.mktemp("datasets"))


@pytest.fixture(scope="module")
def grouped(root) -> Path:
    return run(root, "grouped")


# --- the same bytes, whatever the way there ---


@pytest.mark.parametrize("workers", [2, 8])
def test_same_bytes_with_more_workers(root, grouped, workers):
    output = run(root, f"workers{workers}", workers=workers)
    assert contents(output) == contents(grouped)


def test_killed_twice_and_resumed(root, grouped):
    output = root / "killed"
    for units in (10, 40):
        killed_after(root, output, ALLOW, units)
    journal = output / ".preparation" / "journal"
    journal.write_bytes(journal.read_bytes()[:-7])  # a torn last line
    run(root, "killed")
    assert contents(output) == contents(grouped)
    assert not (output / ".preparation").exists()


def test_killed_while_the_jsons_are_written(root, grouped):
    output = root / "killed_late"

    def work() -> None:
        finish = pipeline.SplitWriter.finish

        def slow(*args):
            written = finish(*args)
            time.sleep(0.2)
            return written

        pipeline.SplitWriter.finish = slow
        prepare_paco(search_roots(root), output, ALLOW)

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    deadline = time.monotonic() + 60
    while not (output / "annotations" / "train.json").is_file():
        assert process.is_alive() and time.monotonic() < deadline
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert not (output / "report.json").exists()
    run(root, "killed_late")
    assert contents(output) == contents(grouped)


def test_a_finished_preparation_is_left_alone_and_others_are_refused(root, grouped):
    before = {path: path.stat().st_mtime_ns for path in grouped.rglob("*") if path.is_file()}
    run(root, "grouped")
    assert {path: path.stat().st_mtime_ns for path in grouped.rglob("*") if path.is_file()} == before
    with pytest.raises(ValueError, match=r"other settings \(seed\).*--restart"):
        run(root, "grouped", PacoOptions(seed=1, allow_missing=True))
    foreign = root / "foreign" / "annotations"
    foreign.mkdir(parents=True)
    (foreign / "train.json").write_text("{}")
    with pytest.raises(ValueError, match="not written by this tool"):
        run(root, "foreign")


def test_an_unfinished_one_of_other_settings_is_refused(root):
    output = root / "mixed"
    killed_after(root, output, ALLOW, 5)
    with pytest.raises(ValueError, match=r"unfinished preparation with other settings \(seed\)"):
        run(root, "mixed", PacoOptions(seed=1, allow_missing=True))
    run(root, "mixed", PacoOptions(seed=1, allow_missing=True), restart=True)
    assert report(output)["settings"]["seed"] == 1


# --- early and clear failure ---


def test_missing_images_are_named(root):
    with pytest.raises(FileNotFoundError, match=r"(?s)1 of \d+ COCO images.*000000000115\.jpg.*--coco-images"):
        run(root, "missing", PacoOptions())
    assert not (root / "missing").exists(), "before any work"


def test_missing_frames_tell_of_the_licence(tmp_path):
    root = write_paco(tmp_path, regular=1)
    for path in (root / "paco" / "images").iterdir():
        path.unlink()
    with pytest.raises(FileNotFoundError, match=r"(?s)Ego4D frames.*licence.*--sources lvis.*--dry-run"):
        run(root, "out", ALLOW)
    (root / "paco" / "images" / "frames.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match="has only jsons"):
        run(root, "out", ALLOW)
    run(root, "out", PacoOptions(sources=("lvis",), allow_missing=True))


def test_missing_annotations(tmp_path):
    root = write_paco(tmp_path, regular=1)
    (root / "paco" / "annotations" / "paco_ego4d_v1_val.json").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"paco_ego4d_v1_val\.json not found.*paco_ego4d_v1\.zip.*--sources lvis"
    ):
        count_paco(search_roots(root), ALLOW)
    (root / "paco" / "annotations" / "paco_ego4d_v1.zip").write_bytes(b"PK")
    with pytest.raises(FileNotFoundError, match=r"Unpack .*paco_ego4d_v1\.zip"):
        count_paco(search_roots(root), ALLOW)


def test_annotations_in_a_folder_of_their_own(tmp_path):
    root = write_paco(tmp_path, regular=1)
    folder = root / "paco" / "annotations"
    (folder / "paco_lvis_v1").mkdir()
    for path in folder.glob("paco_lvis*.json"):
        path.rename(folder / "paco_lvis_v1" / path.name)
    found = find_annotation_files(search_roots(root), ALLOW.files)
    assert found["lvis", "train"].parent.name == "paco_lvis_v1" and len(found) == 5


def test_environment_variables_of_paco(tmp_path, monkeypatch):
    monkeypatch.setenv("PACO_ANNOTATION_ROOT", str(tmp_path / "there"))
    monkeypatch.setenv("COCO_IMAGE_ROOT", str(tmp_path / "coco_there"))
    roots = search_roots(tmp_path)
    assert roots.annotations[0] == tmp_path / "there" and roots.coco[0] == tmp_path / "coco_there"
    assert search_roots(tmp_path, annotations=tmp_path / "said").annotations == (tmp_path / "said",)


def test_withheld_ego4d_test_set(tmp_path):
    root = write_paco(tmp_path, regular=1, ego4d_test="withheld")
    with pytest.raises(ValueError, match=r"withheld version.*--ego4d-test"):
        count_paco(search_roots(root), PacoOptions(ego4d_test=True))
    count_paco(search_roots(root), ALLOW)
    assert ("ego4d", "test") not in PacoOptions(mode="thesis", ego4d_test=True).files


@pytest.mark.parametrize(
    "text, message", [("{", "not valid json"), ("[]", "lacks it"), ('{"images": [], "annotations": []}', "categories")]
)
def test_broken_annotation_files(tmp_path, text, message):
    root = write_paco(tmp_path, regular=1)
    path = root / "paco" / "annotations" / "paco_lvis_v1_val.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"paco_lvis_v1_val\.json.*{message}"):
        count_paco(search_roots(root), ALLOW)
