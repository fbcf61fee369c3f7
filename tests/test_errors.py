"""How every tool ends on an error that the user can fix."""

from __future__ import annotations

import ast
import copy
import errno
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from part_robust.attacks import AttackError
from part_robust.cli import COMMANDS
from part_robust.engine.checkpoint import PartCheckpointer
from part_robust.engine.failures import NonFiniteStep
from part_robust.engine.hooks import BestCheckpoint
from part_robust.evaluation.adversarials import load_adversarials
from part_robust.evaluation.compare import NotComparable, load_evaluated
from part_robust.evaluation.journal import Journal
from part_robust.evaluation.record_schema import check_record
from part_robust.evaluation.run_record import measured, results_table
from part_robust.evaluation.verification import recorded_config
from part_robust.utils.errors import PREPARATION, UserError, as_user_errors, sentence, user_errors
from part_robust.utils.files import read_json
from part_robust.utils.safe_loading import load_state
from part_robust.visualize import check_picture

TRACEBACK = "Traceback (most recent call last):"
PACKAGE = Path(__file__).resolve().parent.parent / "part_robust"


@pytest.mark.parametrize(
    ("error", "also", "words"),
    [
        (UserError("A must be 1, got 2"), (), "UserError: A must be 1, got 2"),
        (KeyError("no attack 'x'"), PREPARATION, "KeyError: no attack 'x'"),
        (FileNotFoundError("a.json does not exist"), (), "FileNotFoundError: a.json does not exist"),
        (
            PermissionError(errno.EACCES, "Permission denied", "a"),
            (),
            "PermissionError: [Errno 13] Permission denied: 'a'",
        ),
        (ValueError("two\n  lines"), PREPARATION, "ValueError: two lines"),
        (
            UserError(
                f"Caught UserError in DataLoader worker process 0.\n{TRACEBACK}\n  x\na.b.UserError: a.jpg is cut"
            ),
            (),
            "UserError: a.jpg is cut",
        ),
        (AttackError("blind"), (), "AttackError: blind"),
        (NonFiniteStep("iteration 3"), (), "NonFiniteStep: iteration 3"),
    ],
)
def test_one_sentence_and_exit_code_1(error, also, words):
    with pytest.raises(SystemExit) as stop, user_errors(*also):
        raise error
    # A text as exit code is printed to stderr, and the process ends with 1.
    assert stop.value.code == words


def test_other_errors_keep_their_traceback():
    with pytest.raises(KeyError), user_errors():
        raise KeyError("a bug")
    with pytest.raises(RuntimeError), user_errors(*PREPARATION):
        raise RuntimeError("a bug")
    with pytest.raises(UserError, match="^no attack$") as error, as_user_errors():
        raise KeyError("no attack")
    assert isinstance(error.value.__cause__, KeyError)


def test_another_exit_code(capsys):
    with pytest.raises(SystemExit) as stop, user_errors(code=2):
        raise UserError("nothing to compare")
    assert stop.value.code == 2 and capsys.readouterr().err == "UserError: nothing to compare\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full")
def test_a_full_disk_is_named_behind_the_error_of_torch():
    with pytest.raises(Exception, match=r".") as caught, open("/dev/full", "wb") as file:
        torch.save({"a": torch.zeros(10**6)}, file)
    assert sentence(caught.value).startswith("OSError: No space left on device. Complete files stay")


@pytest.mark.parametrize("module", sorted({command.module for command in COMMANDS.values()}))
def test_every_command_uses_the_one_context(module):
    tree = ast.parse((PACKAGE / f"{module.replace('.', '/')}.py").read_text())
    names = {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    assert names & {"user_errors", "launch"}, "launch has the same rules"
    (main,) = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "main")
    assert not any(isinstance(node, ast.ExceptHandler) for node in ast.walk(main)), "a second way to end"


def test_damaged_files_of_a_run(tmp_path):
    for content, words in ((b"", "an empty file"), (b'{"a": ', "6 bytes that begin with")):
        path = tmp_path / "journal.json"
        path.write_bytes(content)
        with pytest.raises(UserError, match=f"{path} must be json, got {words}.*: delete it"):
            read_json(path, "delete it")
        with pytest.raises(UserError, match=r"journal\.json .*without --resume"):
            Journal.open(tmp_path, {"a": "b"}, resume=True)
    folder = tmp_path / "journal"
    folder.mkdir()
    (folder / "journal.json").touch()
    Journal.open(folder, {"a": "b"}, resume=False)
    assert json.loads((folder / "journal.json").read_text()) == {"a": "b"}
    assert (tmp_path / "journal.previous").is_dir()
    (tmp_path / "robustness.json").touch()
    with pytest.raises(UserError, match="an empty file: evaluate again"):
        load_evaluated(tmp_path)


def test_an_empty_record_of_the_best_checkpoint(tmp_path):
    class Checkpointer:
        save_dir = str(tmp_path)

    class Trainer:
        start_iter = 4

    (tmp_path / "best_checkpoint.json").touch()
    hook = BestCheckpoint(Checkpointer(), "classification/accuracy", 2)
    hook.trainer = Trainer()
    with pytest.raises(UserError, match=r"best_checkpoint\.json must be json, got an empty file: delete it"):
        hook.before_train()
    for content in ("[]", '{"value": 3}'):
        (tmp_path / "best_checkpoint.json").write_text(content)
        with pytest.raises(UserError, match="must be a json object with metric, value, iteration, got .*: delete it"):
            hook.before_train()


def test_a_damaged_name_of_the_last_checkpoint(tmp_path):
    checkpointer = PartCheckpointer(torch.nn.Linear(1, 1), str(tmp_path))
    assert checkpointer.get_checkpoint_file() == ""
    path = tmp_path / "last_checkpoint"
    for content, words in ((b"", "got an empty file"), (b"\xff\xfe", "got 2 bytes")):
        path.write_bytes(content)
        with pytest.raises(UserError, match=f"{path} must be the name of a checkpoint beside it, {words}"):
            checkpointer.resume_or_load("", resume=True)
    checkpointer.save("model_0000001")
    assert checkpointer.get_checkpoint_file() == str(tmp_path / "model_0000001.pth")
    path.unlink()
    path.mkdir()
    with pytest.raises(UserError, match="got a folder"):
        checkpointer.get_checkpoint_file()


def test_a_journal_that_is_no_object(tmp_path):
    (tmp_path / "journal.json").write_text("[]")
    with pytest.raises(UserError, match=r"journal\.json must be a json object, got a list: .*without --resume"):
        Journal.open(tmp_path, {"a": "b"}, resume=True)


RECORD = {
    "results": {"d": {"classification": {"accuracy": None}}},
    "checkpoint": {"path": "", "sha256": None},
    "evaluation": {"d": {"clean": None, "headline": "t", "tiers": {"t": {"robust": {"accuracy": 1.0}}}, "files": {}}},
}


@pytest.mark.parametrize(
    ("keys", "value", "words"),
    [
        ((), [], r"\[\], which is not a group"),
        (("evaluation",), "x", "'x' as evaluation, which must be a group of entries"),
        (("evaluation", "d"), None, "None as evaluation.d, which"),
        (("evaluation", "d", "clean"), {"accuracy": "many"}, "'many' as evaluation.d.clean.accuracy, .* a number"),
        (("evaluation", "d", "tiers", "t", "robust"), {"accuracy": True}, "True as .*robust.accuracy, .* a number"),
        (("evaluation", "d", "checks"), [{"id": "C1"}, 3], r"3 as evaluation.d.checks\[1\], which must be a group"),
        (("evaluation", "d", "headline"), "u", "'u' as evaluation.d.headline, which must be one of its tiers"),
        (("checkpoint",), "x", "'x' as checkpoint"),
        (("warnings",), {"d": 3}, "3 as warnings.d, which must be a list"),
    ],
)
def test_records_with_entries_of_another_type(keys, value, words, tmp_path):
    record = copy.deepcopy(RECORD)
    check_record(record, "a record that is right")
    node = record
    for key in keys[:-1]:
        node = node[key]
    if keys:
        node[keys[-1]] = value
    (tmp_path / "robustness.json").write_text(json.dumps(record if keys else value))
    for read in (load_evaluated, lambda folder: recorded_config(folder, "")):
        with pytest.raises(UserError, match=rf"robustness\.json must be the record of an evaluation, got {words}"):
            read(tmp_path)


def test_damaged_arrays_beside_a_record(tmp_path):
    record = copy.deepcopy(RECORD)
    record["evaluation"]["d"]["files"]["flags"] = "flags.npz"
    (tmp_path / "robustness.json").write_text(json.dumps(record))
    path, ids = tmp_path / "flags.npz", np.arange(3)
    for content in (b"", b"PK\x03\x04", b"text"):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"flags\.npz must be a whole file of flags of an evaluation, got \d bytes"):
            load_evaluated(tmp_path)
    with open(path, "wb") as file:
        np.save(file, ids)  # one array alone
    with pytest.raises(UserError, match="a whole file of flags"):
        load_evaluated(tmp_path)
    for arrays, words in (
        ({"label": ids}, "must hold image_id, label"),
        ({"image_id": ids, "label": ids, "clean_correct": ids[:2]}, "a flag for each image"),
        ({"image_id": ids[:0], "label": ids[:0]}, "of 0 images"),
    ):
        np.savez(path, **arrays)
        with pytest.raises(NotComparable, match=words):
            load_evaluated(tmp_path)


def test_what_was_not_measured_is_no_number():
    results = {"d": {"part_seg": {"mIoU": float("nan"), "pixel_accuracy": 50.0, "num_images": 3.0}}}
    assert measured(results) == {"d": {"part_seg": {"mIoU": None, "pixel_accuracy": 50.0, "num_images": 3.0}}}
    table = results_table(results, {})
    assert "nan" not in table
    cells = [cell.strip() for cell in table.splitlines()[-1].split("|")[1:-1]]
    assert cells == ["d", "clean", "-", "50.00", "-", "-", "-", "3"]


def test_a_cut_file_of_attacked_images(tmp_path):
    path = tmp_path / "batch_0.npz"
    with open(path, "wb") as file:
        arrays = {"image_id": np.arange(2), "label": np.arange(2), "eps": np.array(8.0), "norm": np.array("linf")}
        np.savez(file, **arrays, images=np.zeros((2, 3, 8, 8), np.float32))
    whole = path.read_bytes()
    for cut in (0, 100, len(whole) // 2, len(whole) - 30):
        path.write_bytes(whole[:cut])
        with pytest.raises(UserError, match=rf"batch_0\.npz must be a whole file.* got {cut} bytes"):
            list(load_adversarials(tmp_path))
    for change, words in (
        ({"images": np.zeros((2, 3, 8), np.float32)}, r"must hold 2 images \(3, H, W\) of float32"),
        ({"images": np.zeros((1, 3, 8, 8), np.float32)}, "must hold 2 images"),
        ({"images": np.zeros((2, 3, 8, 8), np.uint8)}, "got uint8"),
        ({"label": None}, "one without label"),
    ):
        changed = {**arrays, "images": np.zeros((2, 3, 8, 8), np.float32), **change}
        np.savez(path, **{name: value for name, value in changed.items() if value is not None})
        with pytest.raises(UserError, match=words):
            list(load_adversarials(tmp_path))


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"model": "x"}, "a str in model"),
        ({"model": {0: torch.zeros(1)}}, "the name 0 in model"),
        ({"average": 3}, "a int in average"),
        ({0: torch.zeros(1)}, "the name 0 in it"),
        ({"a": torch.zeros(2, 2).to_sparse()}, "a tensor a that is sparse"),
        ({"model": {"a": torch.zeros(1, device="meta")}}, "without values in model"),
        ({"a": torch.zeros(1, dtype=torch.complex64)}, "complex"),
        ({"model": {}, "iteration": "x"}, "its iteration as a whole number, got 'x'"),
    ],
)
def test_weights_that_are_none(state, words, tmp_path):
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(UserError, match=words):
        load_state(tmp_path / "weights.pth")


def test_weights_that_are_cut_early(tmp_path):
    """A part of a zip file, which torch.load takes for its older format."""
    torch.save({"model": {"a": torch.zeros(10**5)}}, tmp_path / "whole.pth")
    path = tmp_path / "cut.pth"
    for size in (100, 5000, 300000):
        path.write_bytes((tmp_path / "whole.pth").read_bytes()[:size])
        with pytest.raises(UserError, match=rf"cut\.pth must be a checkpoint, got {size} bytes .*the file is cut off"):
            load_state(path)


def test_what_is_to_be_drawn(tmp_path):
    check_picture(tmp_path / "a.PNG", 1)
    (tmp_path / "b.png").mkdir()
    for path in (tmp_path, tmp_path / "a.xyz", tmp_path / "b.png"):
        with pytest.raises(UserError, match=r"--output must be a file that ends in \.png or \.jpg"):
            check_picture(path)
    with pytest.raises(UserError, match="--count must be at least 1, got 0"):
        check_picture("a.jpg", 0)


def test_weights_with_nan_are_refused_by_all_that_evaluate(tmp_path):
    model = torch.nn.Linear(1, 1)
    path = str(tmp_path / "weights.pth")
    torch.save({"model": {key: torch.full_like(value, torch.nan) for key, value in model.state_dict().items()}}, path)
    with pytest.raises(
        UserError, match=r"weights\.pth must hold finite numbers, got NaN or infinity in 2 of 2 tensors"
    ):
        PartCheckpointer(model, strict=True).load(path)
