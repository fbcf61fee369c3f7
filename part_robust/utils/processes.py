"""Waiting for other processes of a job, for as long as their work takes."""

from __future__ import annotations

import functools
from datetime import timedelta
from typing import Any

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
