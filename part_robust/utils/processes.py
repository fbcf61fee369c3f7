"""Waiting for other processes of a job for as long as their work takes, and noticing when one is gone."""

from __future__ import annotations

import functools
import os
import sys
import threading
from datetime import timedelta
from typing import Any

import torch
from detectron2.utils import comm
from torch import distributed

# An audit takes hours, and images that no attack breaks take one process longer than others; the usual 30 minutes of a
# collective would end such a job. A process that dies closes its connections, which ends the wait at once.
PATIENCE = timedelta(days=30)


def wait_for_all() -> None:
    """Returns when all processes of the job have called it, however long that takes; at once in a job of one process.

    The first call in a job must come at a time when the processes are not hours apart, as it makes a process group;
    `prepare_to_wait` makes it earlier.

    Raises:
        RuntimeError: a process of the job has ended.
    """
    if comm.get_world_size() > 1:
        distributed.barrier(group=_patient_group(distributed.group.WORLD))


def prepare_to_wait() -> None:
    """Makes the process group of `wait_for_all`; every process must call it."""
    if comm.get_world_size() > 1:
        _patient_group(distributed.group.WORLD)


@functools.lru_cache(maxsize=1)
def _patient_group(world: Any) -> Any:
    """The group of gloo, which runs on the CPU and notices a closed connection, for one `world` group."""
    return distributed.new_group(backend="gloo", timeout=PATIENCE)


class _Watch:
    """A thread that waits for the next process's farewell, and ends this process if the connection breaks before."""

    def __init__(self) -> None:
        self.group = distributed.new_group(backend="gloo", timeout=PATIENCE)
        self.rank, self.world = comm.get_rank(), comm.get_world_size()
        self.leaving = False
        self.thread = threading.Thread(target=self._wait, daemon=True, name="watch")
        self.thread.start()

    def _wait(self) -> None:
        neighbour = (self.rank + 1) % self.world
        try:
            distributed.recv(torch.zeros(1), src=neighbour, group=self.group)
        except Exception as error:  # gloo's errors have no class of their own
            if self.leaving:
                return
            # The main thread may be inside a collective of NCCL, which would wait for half an hour.
            reason = str(error).strip().splitlines()[0][:200]
            print(  # noqa: T201 (the last words of this process)
                f"process {self.rank}: process {neighbour} of the job is gone ({reason}). The same command with "
                "--resume continues from the last checkpoint",
                file=sys.stderr,
                flush=True,
            )
            os._exit(1)

    def leave(self) -> None:
        self.leaving = True
        distributed.send(torch.zeros(1), dst=(self.rank - 1) % self.world, group=self.group)
        self.thread.join()


_watch: _Watch | None = None


def watch_neighbour() -> None:
    """From now on this process ends, with a sentence on stderr, when the process of the next rank is gone; so the job
    ends as a whole within seconds, whoever started it. Every process must call it."""
    global _watch
    if comm.get_world_size() > 1:
        _watch = _Watch()


def abandon_watch() -> None:
    """This process is about to end with an error or a signal: it no longer minds what happens to the others."""
    if _watch is not None:
        _watch.leaving = True


def stop_watching() -> None:
    """Ends what `watch_neighbour` began; nothing to do where it was not called. Every process must call it."""
    global _watch
    if _watch is not None:
        _watch.leave()
        _watch = None
