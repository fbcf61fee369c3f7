"""Commands as a shell sees them, called in this process: one of its own takes five seconds to import everything."""

from __future__ import annotations

import importlib
import io
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.logger import setup_logger

ROOT = Path(__file__).resolve().parent.parent


@dataclass
class Ended:
    """A command that has ended."""

    returncode: int
    stdout: str
    stderr: str


def exit_code(main: Callable[[Sequence[str]], int | None], arguments: Sequence[str]) -> int:
    """Calls a command; where it ends with a sentence, that goes to stderr, as Python does with it."""
    try:
        return main(arguments) or 0
    except SystemExit as stop:
        if isinstance(stop.code, str):
            sys.stderr.write(f"{stop.code}\n")
            return 1
        return int(stop.code or 0)


def call(tool: str, *arguments) -> Ended:
    """Calls the command of tools/TOOL.py; `tests/test_import_direction.py` holds that the script does no more."""
    main = importlib.import_module(f"part_robust.cli.{tool}").main
    stdout, stderr = io.StringIO(), io.StringIO()
    with undone(), redirect_stdout(stdout), redirect_stderr(stderr):
        code = exit_code(main, [str(argument) for argument in arguments])
    return Ended(code, stdout.getvalue(), stderr.getvalue())


def succeeded(done: Ended) -> str:
    """Returns the output of a command that has ended well."""
    text = done.stdout + done.stderr
    assert done.returncode == 0, text[-3000:]
    return text


@contextmanager
def undone() -> Iterator[None]:
    """Takes back what a command leaves in its process: data sets with a name, and where the lines of its run go."""
    logs = [logging.getLogger(name) for name in ("fvcore", "detectron2", "part_robust")]
    before = [(log.propagate, log.level) for log in logs]
    names = set(DatasetCatalog.list())
    try:
        yield
    finally:
        for name in set(DatasetCatalog.list()) - names:
            DatasetCatalog.pop(name), MetadataCatalog.pop(name, None)
        setup_logger.cache_clear()
        for log, (propagate, level) in zip(logs, before, strict=True):
            log.propagate = propagate
            log.setLevel(level)
            for handler in list(log.handlers):
                log.removeHandler(handler)
                handler.close()
