"""Processes for tests: forked, so that they need not import everything again, and know the data sets of the test."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

from part_robust.engine.launch import run_processes

JOBS: list[Job] = []


class Job:
    """A process of the command line, forked so that it need not import everything again; its output is in a file."""

    def __init__(
        self, log: Path, target: Callable[..., object], *args, environment: dict[str, str] | None = None, **options
    ) -> None:
        self.log = log
        self.process = multiprocessing.get_context("fork").Process(
            target=self._run, args=(target, args, options, environment or {})
        )
        self.process.start()
        JOBS.append(self)

    def _run(self, target: Callable[..., object], args: tuple, options: dict, environment: dict[str, str]) -> None:
        os.setpgid(0, 0)  # so that a signal can be sent to it and its children alone
        file = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, 1), os.dup2(file, 2)
        sys.stdout, sys.stderr = (os.fdopen(number, "w") for number in (1, 2))
        os.environ.update(environment)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        target(*args, **options)

    def end(self, code: int, seconds: float = 60.0) -> list[str]:
        """Waits for the end, and returns the lines of the output."""
        self.process.join(seconds)
        text = self.log.read_text()
        assert self.process.exitcode == code, text[-3000:]
        return text.splitlines()

    def children(self) -> list[int]:
        return [
            int(pid) for pid in Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        ]


class ForkedCommand:
    """Stands in for `subprocess.Popen` of `python -m MODULE ...`; forked for the same reason as `Job`."""

    def __init__(self, command: list[str], *, stdout: IO, env: dict[str, str], **options) -> None:
        assert command[:2] == [sys.executable, "-m"]
        self.process = multiprocessing.get_context("fork").Process(
            target=self._run, args=(command[2:], stdout.fileno(), env)
        )
        self.process.start()

    def _run(self, words: list[str], output: int, environment: dict[str, str]) -> None:
        os.setsid()
        os.dup2(output, 1), os.dup2(output, 2)
        sys.stdout, sys.stderr = (os.fdopen(number, "w") for number in (1, 2))
        os.environ.clear()
        os.environ.update(environment)
        sys.argv = words
        runpy.run_module(words[0], run_name="__main__")

    returncode = property(lambda self: self.process.exitcode)

    def poll(self) -> int | None:
        return self.process.exitcode

    def wait(self) -> int | None:
        self.process.join()
        return self.process.exitcode

    def terminate(self) -> None:
        self.process.terminate()


def start_two(main: Callable[..., object], args: tuple, **options) -> None:
    """Calls `main(*args)` in two forked processes of one process group, and waits for them."""
    run_processes(main, args, 2, start_method="fork", **options)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 100
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def kill_this_process(*args) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def ends_killed(target: Callable[..., object], *args) -> None:
    """Calls a function in a process of its own, which must end by `kill_this_process`."""
    process = multiprocessing.get_context("fork").Process(target=target, args=args)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
