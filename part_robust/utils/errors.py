"""Errors whose message is a sentence for the user, and the way every tool prints them."""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """Something that the user can fix. The message names the key or file and the remedy; no traceback is needed."""


# What reading a config, data and weights, and building from them, raises with a message for the user.
PREPARATION = (ImportError, KeyError, ValueError)
_FILES = (FileExistsError, FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError)
_TRACEBACK = "Traceback (most recent call last):"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


@contextmanager
def user_errors(*also: type[Exception], code: int = 1) -> Iterator[None]:
    """Ends the process with one sentence on stderr, without a traceback, on an error that the user can fix.

    Args:
        also: types that only say what to fix in this block, such as `*PREPARATION`.
        code: exit code.

    Raises:
        SystemExit: the block raised a `UserError`, an error of a file or a full disk, or one of `also`.
    """
    try:
        yield
    except Exception as error:
        if not is_fixable(error, *also):
            raise
        if code == 1:
            sys.exit(sentence(error))
        print(sentence(error), file=sys.stderr, flush=True)  # noqa: T201 (the last word of the process)
        sys.exit(code)


@contextmanager
def as_user_errors() -> Iterator[None]:
    """Turns errors of `PREPARATION` into `UserError`: of a block that only reads, checks and builds.

    Raises:
        UserError: the block raised one of them.
    """
    try:
        yield
    except UserError:
        raise
    except PREPARATION as error:
        raise UserError(_message(error)) from error


def is_fixable(error: BaseException, *also: type[Exception]) -> bool:
    """Return whether a user can do something about an error."""
    return isinstance(error, (UserError, *_FILES, *also)) or _out_of_space(error) is not None


def sentence(error: BaseException) -> str:
    """Type and message of an error in one line.

    An error of a data-loading worker carries the worker's traceback as its message, whose last line is the error.
    """
    full = _out_of_space(error)
    if full is not None:
        return _space_sentence(full)
    if _TRACEBACK in str(error):
        name, _, message = str(error).strip().splitlines()[-1].partition(": ")
        return f"{name.rsplit('.', 1)[-1]}: {message}"
    return f"{type(error).__name__}: {_message(error)}"


def _message(error: BaseException) -> str:
    # str() of a KeyError is its message in quotes.
    text = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
    return " ".join(line.strip() for line in text.splitlines() if line.strip())


def _out_of_space(error: BaseException | None) -> OSError | None:
    """Also inspects the cause of an error: torch.save raises a RuntimeError when a write fails."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL:
            return error
        error = error.__cause__ or error.__context__
    return None


def _space_sentence(error: OSError) -> str:
    where = f" ({error.filename})" if error.filename else ""
    return (
        f"{type(error).__name__}: {error.strerror}{where}. Complete files stay as they are: make room there, or write "
        "to another folder"
    )
