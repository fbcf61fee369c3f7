"""Waiting for other processes of a job for as long as their work takes, and noticing when one is gone."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any, NoReturn

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
    if comm.get_world_size() > 1 and distributed.is_initialized():
        distributed.barrier(group=_patient_group(distributed.group.WORLD))
    else:
        comm.synchronize()


def prepare_to_wait() -> None:
    """Makes the process group of `wait_for_all`; every process must call it."""
    if comm.get_world_size() > 1 and distributed.is_initialized():
        _patient_group(distributed.group.WORLD)


@functools.lru_cache(maxsize=1)
def _patient_group(world: Any) -> Any:
    """The group of gloo, which runs on the CPU and notices a closed connection, for one `world` group."""
    return distributed.new_group(backend="gloo", timeout=PATIENCE)


class _Watch:
    """A thread that waits for a message of the process of the next rank: that it has finished, or that the job fails.

    A broken connection is a message, too. The processes are a ring, so every one is watched.
    """

    FINISHED, FAILED = 0.0, 1.0

    def __init__(self, lost: Callable[[str], NoReturn]) -> None:
        self.lost = lost
        self.group = distributed.new_group(backend="gloo", timeout=PATIENCE)
        self.rank, self.world = comm.get_rank(), comm.get_world_size()
        self.leaving = False
        self.thread = threading.Thread(target=self._wait, daemon=True, name="watch")
        self.thread.start()

    def _wait(self) -> None:
        neighbour = (self.rank + 1) % self.world
        message, cause = torch.zeros(1), ""
        try:
            distributed.recv(message, src=neighbour, group=self.group)
        except Exception as error:  # gloo's errors have no class of their own
            message, cause = torch.tensor([self.FAILED]), f" ({str(error).strip().splitlines()[0][:200]})"
        if float(message) == self.FAILED and not self.leaving:
            # The main thread may be inside a collective of NCCL, which would wait for half an hour.
            self.lost(
                f"process {neighbour} of the job is gone{cause}. The same command with --resume continues from the "
                "last checkpoint"
            )

    def tell(self, message: float) -> None:
        """Sends a message to the process that watches this one."""
        self.leaving = True
        distributed.send(torch.tensor([message]), dst=(self.rank - 1) % self.world, group=self.group)

    def leave(self) -> None:
        self.tell(self.FINISHED)
        self.thread.join()


_watch: _Watch | None = None


def watch_neighbour(lost: Callable[[str], NoReturn]) -> None:
    """Call `lost` in a thread, with a sentence, when the process of the next rank is gone.

    As it ends this process, the job ends as a whole within seconds, whatever started it. Every process must call this.
    """
    global _watch
    if comm.get_world_size() > 1:
        _watch = _Watch(lost)


def abandon_watch() -> None:
    """Stop watching the other processes, as this one is about to end with an error."""
    if _watch is not None:
        _watch.leaving = True


def pass_failure_on() -> None:
    """Calls `lost` in the process that watches this one, and so, one after the other, in all processes of the job."""
    if _watch is not None:
        with contextlib.suppress(RuntimeError):  # it is gone itself
            _watch.tell(_watch.FAILED)


def stop_watching() -> None:
    """Ends what `watch_neighbour` began; nothing to do where it was not called. Every process must call it."""
    global _watch
    if _watch is not None:
        _watch.leave()
        _watch = None
