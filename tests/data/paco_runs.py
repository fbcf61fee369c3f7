"""Preparations of the drawn PACO, and what they leave on disk."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from part_robust.data.preparation import paco
from part_robust.data.preparation.paco import PacoOptions, prepare_paco
from part_robust.data.preparation.paco_files import search_roots

ALLOW = PacoOptions(allow_missing=True)


def run(root: Path, name: str, options: PacoOptions = ALLOW, workers: int = 1, **kwargs) -> Path:
    output = root / name
    prepare_paco(search_roots(root), output, options, workers, **kwargs)
    return output


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def report(output: Path) -> dict:
    return json.loads((output / "report.json").read_text())


def killed_after(root: Path, output: Path, options: PacoOptions, units: int) -> None:
    kill_after(lambda: prepare_paco(search_roots(root), output, options), paco, "crop_unit", output, units)


def kill_after(preparation: Callable[[], object], module: ModuleType, unit: str, output: Path, units: int) -> None:
    """Starts a preparation in another process and kills it for good when that many images are done.

    Args:
        preparation: the call.
        module: of the preparation.
        unit: name in `module` of the function that does one image; it is slowed down meanwhile.
        output: folder that the preparation writes.
        units: images before the kill.
    """

    def work() -> None:
        process = getattr(module, unit)

        def slow(*args, **kwargs):
            time.sleep(0.01)
            return process(*args, **kwargs)

        setattr(module, unit, slow)
        preparation()

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    journal = output / ".preparation" / "journal"
    deadline = time.monotonic() + 60
    while not journal.is_file() or journal.read_bytes().count(b"\n") <= units:
        assert process.is_alive() and time.monotonic() < deadline
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert not (output / "report.json").exists()
