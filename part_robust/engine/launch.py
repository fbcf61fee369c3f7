"""Starts a job's processes, or finds out that torchrun or Slurm has, and says in a sentence why one ended.

python tools/train_net.py --num-gpus 8                                   this module starts 8 processes
torchrun --nproc-per-node 8 tools/train_net.py                           torchrun did
srun --ntasks-per-node 8 python tools/train_net.py                       Slurm did, on any number of nodes
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

import torch
from detectron2.engine import launch as detectron2_launch
from detectron2.engine.launch import DEFAULT_TIMEOUT
from detectron2.utils import comm
from torch import distributed
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

from part_robust.attacks import AttackError
from part_robust.engine.checkpoint import CheckpointMismatch
from part_robust.engine.failures import SIGNALS, NonFiniteStep
from part_robust.engine.output_lock import OutputInUse
from part_robust.engine.overfitting_guard import CatastrophicOverfitting
from part_robust.engine.phases import OtherRun
from part_robust.engine.safe_loading import UnsafeCheckpoint
from part_robust.evaluation.journal import JournalMismatch

# What a user can mend needs a sentence, not a traceback.
MENDABLE = (
    AttackError,
    CatastrophicOverfitting,
    CheckpointMismatch,
    FileNotFoundError,
    JournalMismatch,
    NonFiniteStep,
    OtherRun,
    OutputInUse,
    UnsafeCheckpoint,
)


class LaunchError(ValueError):
    """The flags and the environment do not go together."""


@dataclass(frozen=True)
class Place:
    """Where this process stands in a job that somebody else has started.

    Attributes:
        rank: of this process, 0..world_size - 1.
        world_size: number of processes.
        local_rank: of this process on its machine.
        local_size: processes on this machine, as on all others.
        address: host and port of process 0.
        started_by: for messages.
    """

    rank: int
    world_size: int
    local_rank: int
    local_size: int
    address: str
    started_by: str


def launch(main: Callable[[argparse.Namespace], object], args: argparse.Namespace) -> None:
    """Runs `main(args)` in every process of the job.

    Args:
        main: importable by name, as it is called in new processes.
        args: of detectron2's `default_argument_parser`.
    """
    try:
        place = place_from_environment(os.environ, args)
    except LaunchError as error:
        sys.exit(f"LaunchError: {error}")
    if place is not None:
        with _process_group(place):
            _in_words(main, args)
        return
    if args.num_gpus * args.num_machines == 1:
        _in_words(main, args)
        return
    try:
        with _signals_passed_on():
            detectron2_launch(
                _in_words,
                args.num_gpus,
                num_machines=args.num_machines,
                machine_rank=args.machine_rank,
                dist_url=args.dist_url,
                args=(main, args),
            )
    except ProcessExitedException as error:
        if error.exit_code >= 0:  # it has said why
            sys.exit(error.exit_code)
        sys.exit(
            f"process {error.error_index} of this machine was ended by {error.signal_name} (out of memory?), and with "
            "it the job. The same command with --resume goes on from the last checkpoint"
        )
    except ProcessRaisedException as error:
        sys.exit(str(error))


def place_from_environment(environment: Mapping[str, str], args: argparse.Namespace) -> Place | None:
    """None where this process is alone, or is to start the others itself.

    Raises:
        LaunchError: processes would be started twice; Slurm has spread them unevenly.
    """
    starts_processes = args.num_gpus > 1 or args.num_machines > 1
    if {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"} <= environment.keys():
        if starts_processes:
            raise LaunchError("torchrun starts the processes: leave --num-gpus and --num-machines out")
        place = Place(
            rank=int(environment["RANK"]),
            world_size=int(environment["WORLD_SIZE"]),
            local_rank=int(environment["LOCAL_RANK"]),
            local_size=int(environment["LOCAL_WORLD_SIZE"]),
            address=f"{environment['MASTER_ADDR']}:{environment['MASTER_PORT']}",
            started_by="torchrun",
        )
    # Set by srun, not in the script that sbatch runs.
    elif "SLURM_STEP_NUM_TASKS" in environment and not starts_processes:
        place = _slurm_place(environment)
    else:
        return None
    return place if place.world_size > 1 else None


def _slurm_place(environment: Mapping[str, str]) -> Place:
    tasks = int(environment["SLURM_STEP_NUM_TASKS"])
    spread = environment.get("SLURM_STEP_TASKS_PER_NODE", str(tasks))
    sizes = {int(size) for size in re.sub(r"\(x\d+\)", "", spread).split(",")}
    if len(sizes) > 1:
        raise LaunchError(f"Slurm gives the nodes {spread} tasks: ask for the same number on each (--ntasks-per-node)")
    host = environment.get("MASTER_ADDR") or first_host(environment.get("SLURM_STEP_NODELIST", "127.0.0.1"))
    # Two jobs on a node must not meet.
    port = environment.get("MASTER_PORT") or str(20000 + int(environment.get("SLURM_JOB_ID", "0")) % 20000)
    return Place(
        rank=int(environment["SLURM_PROCID"]),
        world_size=tasks,
        local_rank=int(environment["SLURM_LOCALID"]),
        local_size=sizes.pop(),
        address=f"{host}:{port}",
        started_by="Slurm",
    )


def first_host(nodes: str) -> str:
    """First name of Slurm's list: "gpu[03-05,9],cpu1" -> "gpu03"."""
    match = re.match(r"([^,\[]+)(?:\[([^\],-]+)[^\]]*\]([^,]*))?", nodes)
    if match is None:
        raise LaunchError(f"cannot read a host name from {nodes!r}: set MASTER_ADDR")
    return "".join(part or "" for part in match.groups())


@contextmanager
def _process_group(place: Place) -> Iterator[None]:
    has_gpu = torch.cuda.is_available()
    if has_gpu and place.local_size > torch.cuda.device_count():
        sys.exit(f"{place.started_by} started {place.local_size} processes on {torch.cuda.device_count()} GPUs")
    distributed.init_process_group(
        backend="nccl" if has_gpu else "gloo",
        init_method=f"tcp://{place.address}" if place.started_by == "Slurm" else "env://",
        world_size=place.world_size,
        rank=place.rank,
        timeout=DEFAULT_TIMEOUT,
    )
    comm.create_local_process_group(place.local_size)
    if has_gpu:
        torch.cuda.set_device(place.local_rank)
    comm.synchronize()
    yield


def _in_words(main: Callable[[argparse.Namespace], object], args: argparse.Namespace) -> None:
    """Calls `main`; errors that have an explanation end the process with that."""
    try:
        main(args)
    except MENDABLE as error:
        sys.exit(sentence(error))
    except RuntimeError as error:
        if not _lost_a_process(error):
            raise
        sys.exit(
            f"process {comm.get_rank()}: another process of the job is gone ({str(error).splitlines()[0]}). The same "
            "command with --resume goes on from the last checkpoint"
        )


def sentence(error: Exception) -> str:
    # str() of a KeyError is its message in quotes.
    return f"{type(error).__name__}: {error.args[0] if isinstance(error, KeyError) else error}"


def _lost_a_process(error: RuntimeError) -> bool:
    if comm.get_world_size() == 1:
        return False
    return isinstance(error, distributed.DistError) or "gloo" in str(error).lower()


@contextmanager
def _signals_passed_on() -> Iterator[None]:
    """What the starting process is told to do, its children must know: they save and end, and so does it."""

    def pass_on(number: int, frame: FrameType | None) -> None:
        for child in multiprocessing.active_children():
            os.kill(child.pid, number)

    before = {number: signal.signal(number, pass_on) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
