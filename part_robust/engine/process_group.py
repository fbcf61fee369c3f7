"""The processes of a job find one another, take their devices, and notice when one of them is gone."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
from detectron2.engine.launch import DEFAULT_TIMEOUT
from detectron2.utils import comm
from torch import distributed

from part_robust.utils.processes import abandon_watch, stop_watching, watch_neighbour

# Seconds between two lines that say which processes have not come yet.
REMINDER = 30.0
# The key of the store under which the first process that fails leaves the reason.
REASON = "part_robust/reason"


class LaunchError(ValueError):
    """The flags and the environment do not go together."""


@dataclass(frozen=True)
class Place:
    """Where this process stands in a job of several processes.

    Attributes:
        rank: of this process, 0..world_size - 1.
        world_size: number of processes.
        local_rank: of this process on its machine.
        local_size: processes on this machine, the same on all machines.
        address: host and port of the store that the processes meet at, "host:port".
        started_by: what started the processes, for messages: "torchrun", "Slurm" or "--num-gpus".
        hosted: another process than rank 0 has opened the store already.
    """

    rank: int
    world_size: int
    local_rank: int
    local_size: int
    address: str
    started_by: str
    hosted: bool = False


@contextmanager
def process_group(place: Place, device_type: str, timeout: timedelta = DEFAULT_TIMEOUT) -> Iterator[None]:
    """The process group of a job, with each process on its device: NCCL for "cuda", gloo for "cpu".

    Raises:
        LaunchError: a process does not come in time, the address is taken, or there are too few GPUs.
    """
    index = device_index(place) if device_type == "cuda" else None
    store = meet(place, timeout)
    if index is not None:
        torch.cuda.set_device(index)
    distributed.init_process_group(
        backend="gloo" if index is None else "nccl",
        store=distributed.PrefixStore("part_robust/group", store),
        world_size=place.world_size,
        rank=place.rank,
        timeout=timeout,
    )
    comm.create_local_process_group(place.local_size)
    comm.synchronize()
    watch_neighbour()
    try:
        yield
    except BaseException:
        abandon_watch()
        raise
    stop_watching()


def device_index(place: Place) -> int:
    """Index of this process's GPU among those it sees.

    Raises:
        LaunchError: there are fewer GPUs than processes.
    """
    count = torch.cuda.device_count()
    if count >= place.local_size:
        return place.local_rank
    if count == 1 and place.started_by == "Slurm":  # --gpus-per-task shows every task its own GPU alone
        return 0
    raise LaunchError(
        f"{place.started_by} started {place.local_size} processes on {count} GPUs: start one process for each GPU, or "
        "set MODEL.DEVICE cpu"
    )


def meet(place: Place, timeout: timedelta) -> distributed.Store:
    """The store of the job, once all processes have come to it. Says on stderr whom it waits for.

    Raises:
        LaunchError: not all have come in time, or the address is taken.
    """
    if place.started_by == "torchrun":  # its agent has opened the store, and watches the processes
        return next(distributed.rendezvous("env://", place.rank, place.world_size, timeout=timeout))[0]
    host, port = place.address.rsplit(":", 1)
    deadline = time.monotonic() + timeout.total_seconds()
    store = _open_store(place, host, int(port), deadline)
    store.add("part_robust/came", 1)
    store.set(f"part_robust/came/{place.rank}", "")
    reminder = time.monotonic() + REMINDER
    while (came := store.add("part_robust/came", 0)) < place.world_size:
        if time.monotonic() > deadline:
            raise LaunchError(f"{_missing(place, store, came)} within {timeout.total_seconds():.0f} s")
        if time.monotonic() > reminder:
            _say(place, f"{_missing(place, store, came)} yet; waiting at {place.address}")
            reminder += REMINDER
        time.sleep(0.05)
    return store


def _open_store(place: Place, host: str, port: int, deadline: float) -> distributed.Store:
    hosts = place.rank == 0 and not place.hosted
    while True:
        left = deadline - time.monotonic()
        try:
            return distributed.TCPStore(
                host,
                port,
                is_master=hosts,
                wait_for_workers=False,
                timeout=timedelta(seconds=max(min(left, REMINDER), 1.0)),
            )
        except (distributed.DistNetworkError, distributed.DistStoreError) as error:
            if hosts:
                remedy = "set MASTER_PORT" if place.started_by == "Slurm" else "give another --dist-url"
                raise LaunchError(
                    f"process 0 cannot listen at {place.address} ({_first_line(error)}): is the port in use by another "
                    f"job, or is it the address of another machine? Then {remedy}"
                ) from error
            if left <= REMINDER:
                raise LaunchError(
                    f"process {place.rank} has found no process 0 at {place.address}: start it (--machine-rank 0), and "
                    "give all machines the same --dist-url"
                ) from error
            _say(place, f"process 0 does not answer at {place.address} yet; waiting")


def _missing(place: Place, store: distributed.Store, came: int) -> str:
    absent = [str(rank) for rank in range(place.world_size) if not store.check([f"part_robust/came/{rank}"])]
    more = f" and {len(absent) - 8} more" if len(absent) > 8 else ""
    return f"{came} of {place.world_size} processes have come, process {', '.join(absent[:8])}{more} has not"


def _say(place: Place, sentence: str) -> None:
    if place.local_rank == 0:
        print(sentence, file=sys.stderr, flush=True)  # noqa: T201 (no log is open yet)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:200]


def read_reason(store: distributed.Store) -> str:
    """What the first process that failed has left in the store; "" if none has."""
    return store.get(REASON).decode() if store.check([REASON]) else ""


def leave_reason(store: distributed.Store, reason: str) -> None:
    """Leaves the reason of a failure in the store, unless another process has left its own before."""
    store.compare_set(REASON, "", reason)


def open_local_store() -> distributed.TCPStore:
    """A store on a free port of this machine, for processes that this one starts."""
    return distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
