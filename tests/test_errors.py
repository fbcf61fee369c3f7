"""How every tool ends on an error that the user can fix."""

from __future__ import annotations

import ast
import errno
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from part_robust.attacks import AttackError
from part_robust.cli import COMMANDS
from part_robust.engine.failures import NonFiniteStep
from part_robust.engine.hooks import BestCheckpoint
from part_robust.evaluation.adversarials import load_adversarials
from part_robust.evaluation.compare import load_evaluated
from part_robust.evaluation.journal import Journal
from part_robust.utils.errors import PREPARATION, UserError, as_user_errors, sentence, user_errors
from part_robust.utils.files import read_json

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


def test_a_cut_file_of_attacked_images(tmp_path):
    path = tmp_path / "batch_0.npz"
    with open(path, "wb") as file:
        np.savez(file, image_id=np.arange(2), images=np.zeros((2, 3, 8, 8), np.float32))
    whole = path.read_bytes()
    for cut in (0, 100, len(whole) // 2, len(whole) - 30):
        path.write_bytes(whole[:cut])
        with pytest.raises(UserError, match=rf"batch_0\.npz must be a whole file.* got {cut} bytes"):
            list(load_adversarials(tmp_path))
