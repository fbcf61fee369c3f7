"""The processes of a job: where torchrun or Slurm has put this one, its device, and how they find one another."""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import NoReturn

import torch
from detectron2.engine.launch import DEFAULT_TIMEOUT
from detectron2.utils import comm
from torch import distributed

from part_robust.engine.failures import Preempted
from part_robust.utils.errors import UserError
from part_robust.utils.processes import abandon_watch, stop_watching, wait_for_all, watch_neighbour

# Seconds until the first line that says which processes have not come yet, and between two of them.
FIRST_REMINDER, REMINDER = 10.0, 30.0


class LaunchError(UserError):
    """The flags and the environment do not go together."""


@dataclass(frozen=True)
class ProcessInfo:
    """The place of this process in a job of several processes.

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

    @property
    def hosts_store(self) -> bool:
        """Whether the other processes of the job meet at a store of this one."""
        return self.rank == 0 and not self.hosted and self.started_by != "torchrun"


def process_from_environment(environment: Mapping[str, str], args: argparse.Namespace) -> ProcessInfo | None:
    """None where this process is alone, or is to start the others itself.

    Raises:
        LaunchError: processes would be started twice; Slurm has spread them unevenly.
    """
    starts_processes = args.num_gpus > 1 or args.num_machines > 1
    if {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"} <= environment.keys():
        if starts_processes:
            raise LaunchError("torchrun starts the processes: leave --num-gpus and --num-machines out")
        info = ProcessInfo(
            rank=int(environment["RANK"]),
            world_size=int(environment["WORLD_SIZE"]),
            local_rank=int(environment["LOCAL_RANK"]),
            local_size=int(environment["LOCAL_WORLD_SIZE"]),
            address=f"{environment['MASTER_ADDR']}:{environment['MASTER_PORT']}",
            started_by="torchrun",
        )
    # Set by srun, not in the script that sbatch runs.
    elif "SLURM_STEP_NUM_TASKS" in environment and not starts_processes:
        info = _slurm_process(environment)
    else:
        return None
    return info if info.world_size > 1 else None


def _slurm_process(environment: Mapping[str, str]) -> ProcessInfo:
    tasks = int(environment["SLURM_STEP_NUM_TASKS"])
    spread = environment.get("SLURM_STEP_TASKS_PER_NODE", str(tasks))
    sizes = {int(size) for size in re.sub(r"\(x\d+\)", "", spread).split(",")}
    if len(sizes) > 1:
        raise LaunchError(f"Slurm gives the nodes {spread} tasks: request the same number on each (--ntasks-per-node)")
    host = environment.get("MASTER_ADDR") or first_host(environment.get("SLURM_STEP_NODELIST", "127.0.0.1"))
    # Two jobs on a node, or two steps of a job, must not meet.
    job, step = (int(environment.get(name, "0")) for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
    port = environment.get("MASTER_PORT") or str(20000 + (job + 101 * step) % 20000)
    return ProcessInfo(
        rank=int(environment["SLURM_PROCID"]),
        world_size=tasks,
        local_rank=int(environment["SLURM_LOCALID"]),
        local_size=sizes.pop(),
        address=f"{host}:{port}",
        started_by="Slurm",
    )


def first_host(nodes: str) -> str:
    """Return the first name of Slurm's list, such as "gpu03" of "gpu[03-05,9],cpu1".

    Raises:
        LaunchError: the list cannot be read.
    """
    match = re.match(r"([^,\[]+)(?:\[([^\],-]+)[^\]]*\]([^,]*))?", nodes)
    if match is None:
        raise LaunchError(f"cannot read a host name from {nodes!r}: set MASTER_ADDR")
    return "".join(part or "" for part in match.groups())


@contextmanager
def process_group(
    info: ProcessInfo,
    device_type: str,
    timeout: timedelta = DEFAULT_TIMEOUT,
    lost: Callable[[str], NoReturn] = sys.exit,
    joined: Callable[[distributed.Store], object] = lambda store: None,
) -> Iterator[None]:
    """The process group of a job, with each process on its device: NCCL for "cuda", gloo for "cpu".

    At the end of the context all processes wait for one another, unless this one ends with an error.

    Args:
        info: of this process.
        device_type: "cpu" or "cuda".
        timeout: of the collectives, and of the wait for all processes.
        lost: ends this process with a sentence when another process is gone; called in a thread.
        joined: gets the store of the job once all processes have come.

    Raises:
        LaunchError: a process does not come in time, the address is taken, or there are too few GPUs.
    """
    index = device_index(info) if device_type == "cuda" else None
    store = meet(info, timeout)
    joined(store)
    if index is not None:
        torch.cuda.set_device(index)
    distributed.init_process_group(
        backend="gloo" if index is None else "nccl",
        store=distributed.PrefixStore("part_robust/group", store),
        world_size=info.world_size,
        rank=info.rank,
        timeout=timeout,
    )
    comm.create_local_process_group(info.local_size)
    comm.synchronize()
    watch_neighbour(lost)
    try:
        yield
    except Preempted:  # in all processes
        end_process_group()
        raise
    except BaseException:
        abandon_watch()
        raise
    end_process_group()


def end_process_group() -> None:
    """Waits for all processes, then takes the group down: a process that just exits can abort its neighbours."""
    if distributed.is_available() and distributed.is_initialized():
        wait_for_all()
        stop_watching()
        distributed.destroy_process_group()


def device_index(info: ProcessInfo) -> int:
    """Index of this process's GPU among those it sees.

    Raises:
        LaunchError: there are fewer GPUs than processes.
    """
    count = torch.cuda.device_count()
    if count >= info.local_size:
        return info.local_rank
    if count == 1 and info.started_by == "Slurm":  # --gpus-per-task shows every task its own GPU alone
        return 0
    raise LaunchError(
        f"{info.started_by} started {info.local_size} processes on {count} GPUs: start one process for each GPU, or "
        "set MODEL.DEVICE cpu"
    )


def meet(info: ProcessInfo, timeout: timedelta) -> distributed.Store:
    """The store of the job, once all processes have come to it. Says on stderr which processes it waits for.

    Raises:
        LaunchError: not all have come in time, the address is taken, or the processes disagree about the job.
    """
    if info.started_by == "torchrun":  # its agent has opened the store, and watches the processes
        return next(distributed.rendezvous("env://", info.rank, info.world_size, timeout=timeout))[0]
    host, port = info.address.rsplit(":", 1)
    deadline = time.monotonic() + timeout.total_seconds()
    store = _open_store(info, host, int(port), deadline)
    try:
        _enter(info, store)
        _wait_for_others(info, store, deadline, timeout)
    except RuntimeError as error:
        raise LaunchError(
            f"process 0 at {info.address} has ended before all processes had come ({_first_line(error)}). Its own last "
            "line says why"
        ) from error
    store.set_timeout(timeout)
    return store


def _enter(info: ProcessInfo, store: distributed.Store) -> None:
    """Registers this process at the store.

    Raises:
        LaunchError: another process has this rank, or is of a job of another size.
    """
    size = int(store.compare_set("part_robust/size", "", str(info.world_size)))
    if size != info.world_size:
        raise LaunchError(
            f"process {info.rank} is one of {info.world_size}, but the job at {info.address} has {size} processes: "
            "give all machines the same --num-machines and --num-gpus, and every job its own --dist-url (Slurm: "
            "MASTER_PORT)"
        )
    if store.add(f"part_robust/came/{info.rank}", 1) > 1:
        raise LaunchError(
            f"process {info.rank} has come to {info.address} twice: give every machine its own --machine-rank, and "
            "every job its own --dist-url (Slurm: MASTER_PORT)"
        )
    store.add("part_robust/came", 1)


def _wait_for_others(info: ProcessInfo, store: distributed.Store, deadline: float, timeout: timedelta) -> None:
    reminder = time.monotonic() + min(FIRST_REMINDER, REMINDER)
    while (came := store.add("part_robust/came", 0)) < info.world_size:
        if time.monotonic() > deadline:
            raise LaunchError(f"{_missing(info, store, came)} within {timeout.total_seconds():.0f} s")
        if time.monotonic() > reminder:
            _say(info, f"{_missing(info, store, came)} yet; waiting at {info.address}")
            reminder += REMINDER
        time.sleep(0.05)


def _open_store(info: ProcessInfo, host: str, port: int, deadline: float) -> distributed.Store:
    while True:
        left = deadline - time.monotonic()
        try:
            return distributed.TCPStore(
                host,
                port,
                is_master=info.hosts_store,
                wait_for_workers=False,
                timeout=timedelta(seconds=max(min(left, REMINDER), 1.0)),
            )
        except (distributed.DistNetworkError, distributed.DistStoreError) as error:
            if info.hosts_store:
                remedy = "set MASTER_PORT" if info.started_by == "Slurm" else "give another --dist-url"
                raise LaunchError(
                    f"process 0 cannot listen at {info.address} ({_first_line(error)}): is the port in use by another "
                    f"job, or is it the address of another machine? Then {remedy}"
                ) from error
            if left <= REMINDER:
                raise LaunchError(
                    f"process {info.rank} has found no process 0 at {info.address}: start it (--machine-rank 0), and "
                    "give all machines the same --dist-url"
                ) from error
            _say(info, f"process 0 does not answer at {info.address} yet; waiting")


def _missing(info: ProcessInfo, store: distributed.Store, came: int) -> str:
    absent = [str(rank) for rank in range(info.world_size) if not store.check([f"part_robust/came/{rank}"])]
    more = f" and {len(absent) - 8} more" if len(absent) > 8 else ""
    return f"{came} of {info.world_size} processes have come, process {', '.join(absent[:8])}{more} has not"


def _say(info: ProcessInfo, sentence: str) -> None:
    if info.local_rank == 0:
        print(sentence, file=sys.stderr, flush=True)  # noqa: T201 (no log is open yet)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:200]
