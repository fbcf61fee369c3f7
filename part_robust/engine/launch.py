"""Starts a job's processes, or finds out that torchrun or Slurm has, and says in a sentence why one ended.

python tools/train_net.py --num-gpus 8                                   this module starts 8 processes
torchrun --nproc-per-node 8 tools/train_net.py                           torchrun did
srun --ntasks-per-node 8 python tools/train_net.py                       Slurm did, on any number of nodes
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from types import FrameType
from typing import Any

import torch
from detectron2.engine import default_argument_parser
from detectron2.engine.launch import DEFAULT_TIMEOUT
from detectron2.utils import comm
from torch import distributed, multiprocessing
from torch.distributed import TCPStore
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

from part_robust.attacks import AttackError
from part_robust.config import get_part_robust_cfg
from part_robust.engine.checkpoint import CheckpointMismatch
from part_robust.engine.failures import SIGNALS, NonFiniteStep
from part_robust.engine.overfitting_guard import CatastrophicOverfitting
from part_robust.engine.phases import OtherRun
from part_robust.engine.process_group import (
    LaunchError,
    Place,
    leave_reason,
    open_local_store,
    process_group,
    read_reason,
)
from part_robust.engine.safe_loading import UnsafeCheckpoint
from part_robust.evaluation.journal import JournalMismatch
from part_robust.utils.errors import UserError

# What a user can mend needs a sentence, not a traceback.
MENDABLE = (
    AttackError,
    CatastrophicOverfitting,
    CheckpointMismatch,
    FileNotFoundError,
    JournalMismatch,
    NonFiniteStep,
    OtherRun,
    UnsafeCheckpoint,
    UserError,
)


def launch(main: Callable[[argparse.Namespace], object], args: argparse.Namespace, device: str = "") -> None:
    """Runs `main(args)` in every process of the job, and exits with a sentence if one of them fails.

    Args:
        main: importable by name, as it is called in new processes.
        args: of detectron2's `default_argument_parser`.
        device: "cpu" or "cuda", which decides how the processes communicate; MODEL.DEVICE of the config by default.
    """
    try:
        check_flags(args)
        place = place_from_environment(os.environ, args)
        if place is None and args.num_gpus * args.num_machines > 1:
            run_processes(
                main,
                (args,),
                args.num_gpus,
                device=device or job_device(args),
                machines=args.num_machines,
                machine_rank=args.machine_rank,
                url=_url(args),
            )
            return
    except LaunchError as error:
        sys.exit(f"LaunchError: {error}")
    if place is None:
        _in_words(main, (args,))
    else:
        _in_group(place, device or job_device(args), main, (args,), DEFAULT_TIMEOUT)


def check_flags(args: argparse.Namespace) -> None:
    """
    Raises:
        LaunchError: a number of processes or machines is impossible.
    """
    if args.num_gpus < 1:
        raise LaunchError(
            f"--num-gpus is the number of processes on each machine and must be at least 1, got {args.num_gpus}. "
            "Without a GPU: --num-gpus 1 and MODEL.DEVICE cpu at the end of the command"
        )
    if args.num_machines < 1:
        raise LaunchError(f"--num-machines must be at least 1, got {args.num_machines}")
    if not 0 <= args.machine_rank < args.num_machines:
        raise LaunchError(
            f"--machine-rank must be 0..{args.num_machines - 1} with --num-machines {args.num_machines}, got "
            f"{args.machine_rank}"
        )


def _url(args: argparse.Namespace) -> str:
    """--dist-url, or "auto" where it was not given: detectron2's default is one port for all jobs of a user.

    Raises:
        LaunchError: it must be given, or is no address.
    """
    if args.dist_url in ("auto", default_argument_parser().get_default("dist_url")):
        if args.num_machines > 1:
            raise LaunchError(
                "--num-machines needs --dist-url tcp://HOST:PORT on every machine, with the host name of machine 0 and "
                "a port that is free there"
            )
        return "auto"
    if not re.fullmatch(r"tcp://[^/]+:\d+", args.dist_url):
        raise LaunchError(f"--dist-url must be tcp://HOST:PORT or auto, got {args.dist_url}")
    return args.dist_url


def job_device(args: argparse.Namespace) -> str:
    """Type of MODEL.DEVICE, "cpu" or "cuda", as the config file and the command line have it."""
    try:
        device = get_part_robust_cfg(args.config_file, args.opts).MODEL.DEVICE
        return torch.device(device).type
    except Exception:  # the job's own reading of the config says what is wrong with it
        return "cpu"


def run_processes(
    main: Callable[..., object],
    args: tuple,
    number: int,
    *,
    device: str = "cpu",
    machines: int = 1,
    machine_rank: int = 0,
    url: str = "auto",
    timeout: timedelta = DEFAULT_TIMEOUT,
) -> None:
    """Starts processes on this machine that call `main(*args)` in one process group, and waits for them.

    Args:
        main: importable by name.
        args: its arguments, which can be pickled.
        number: of processes on this machine.
        device: "cpu" or "cuda".
        machines: of the job, each with as many processes.
        machine_rank: of this one.
        url: "tcp://HOST:PORT" where the machines meet; "auto" for one machine.
        timeout: of the collectives, and of the wait for all processes.

    Raises:
        SystemExit: a process has failed; its message is the reason. Preempted processes have none.
    """
    store = open_local_store()  # also tells the reason of a failure
    address = f"127.0.0.1:{store.port}" if url == "auto" else url.removeprefix("tcp://")
    places = [
        Place(
            rank=machine_rank * number + local_rank,
            world_size=machines * number,
            local_rank=local_rank,
            local_size=number,
            address=address,
            started_by="--num-gpus",
            hosted=url == "auto",
        )
        for local_rank in range(number)
    ]
    context = multiprocessing.start_processes(
        _child, (places, store.port, device, main, args, timeout), nprocs=number, join=False, daemon=False
    )
    with _signals_passed_on():
        try:
            while not context.join():
                pass
        except KeyboardInterrupt:
            _end(context.processes, signal.SIGINT)
            print(_INTERRUPTED, file=sys.stderr, flush=True)  # noqa: T201 (the last word of the job)
            sys.exit(128 + signal.SIGINT)
        except (ProcessExitedException, ProcessRaisedException) as error:
            codes = [process.exitcode or 0 for process in context.processes]
            sys.exit(_reason(error, codes, read_reason(store)))


_INTERRUPTED = "Interrupted. The same command with --resume continues from the last checkpoint"


def _reason(error: Exception, codes: Sequence[int], told: str) -> str | int:
    """Exit code or last line of a job of which a process has failed."""
    if told:
        return told
    if isinstance(error, ProcessExitedException) and error.exit_code > 128:  # saved and ended, as it was told to
        return error.exit_code
    if isinstance(error, ProcessRaisedException):
        return str(error)
    if isinstance(error, ProcessExitedException) and not any(code < 0 and -code != signal.SIGTERM for code in codes):
        return error.exit_code
    # SIGTERM is what the others got afterwards, and gloo aborts processes that have lost another one.
    names = [signal.Signals(-code).name for code in codes if code < 0 and -code != signal.SIGTERM]
    name = next((name for name in names if name != "SIGABRT"), "SIGABRT")
    guess = " (out of memory?)" if name == "SIGKILL" else ""
    return (
        f"a process of this machine was ended by {name}{guess}, and with it the job. The same command with --resume "
        "continues from the last checkpoint"
    )


def _end(processes: Sequence[Any], number: int, patience: float = 20.0) -> None:
    """Sends the processes a signal, and kills those that are there after `patience` seconds."""
    for process in processes:
        if process.is_alive():
            os.kill(process.pid, number)
    deadline = time.monotonic() + patience
    for process in processes:
        process.join(max(deadline - time.monotonic(), 0.0))
        if process.is_alive():
            process.kill()


def _child(
    local_rank: int,
    places: Sequence[Place],
    parent: int,
    device: str,
    main: Callable[..., object],
    args: tuple,
    timeout: timedelta,
) -> None:
    """One process that `run_processes` has started. It leaves the reason of a failure in the parent's store."""
    store = TCPStore("127.0.0.1", parent, is_master=False, wait_for_workers=False)

    def tell(reason: str) -> None:
        leave_reason(store, f"process {places[local_rank].rank}: {reason}")

    _in_group(places[local_rank], device, main, args, timeout, tell)


def _in_group(
    place: Place,
    device: str,
    main: Callable[..., object],
    args: tuple,
    timeout: timedelta,
    tell: Callable[[str], None] | None = None,
) -> None:
    try:
        with process_group(place, device, timeout):
            _in_words(main, args, tell)
    except LaunchError as error:
        _leave(f"LaunchError: {error}", tell)


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


def _in_words(main: Callable[..., object], args: tuple, tell: Callable[[str], None] | None = None) -> None:
    """Calls `main`; errors that have an explanation end the process with that.

    Args:
        main: what the process does.
        args: of it.
        tell: leaves the reason for the process that has started this one, which then writes it as its last line.
    """
    try:
        main(*args)
    except MENDABLE as error:
        _leave(sentence(error), tell)
    except KeyboardInterrupt:
        if tell is None:
            print(_INTERRUPTED, file=sys.stderr, flush=True)  # noqa: T201 (the last word of the process)
        sys.exit(128 + signal.SIGINT)
    except SystemExit as error:
        if isinstance(error.code, str):
            _leave(error.code, tell)
        raise
    except RuntimeError as error:
        if not _lost_a_process(error):
            _tell(error, tell)
            raise
        # Not told: the process that is gone has left its own reason, if it could.
        sys.exit(
            f"process {comm.get_rank()}: another process of the job is gone ({str(error).splitlines()[0]}). The same "
            "command with --resume continues from the last checkpoint"
        )
    except Exception as error:
        _tell(error, tell)
        raise


def _leave(reason: str, tell: Callable[[str], None] | None) -> None:
    if tell is None:
        sys.exit(reason)
    tell(reason)
    sys.exit(1)


def _tell(error: Exception, tell: Callable[[str], None] | None) -> None:
    """The last line of the message: errors of data-loading workers carry their whole traceback."""
    if tell is not None:
        lines = str(error).strip().splitlines() or [""]
        tell(lines[-1] if lines[-1].startswith(type(error).__name__) else f"{type(error).__name__}: {lines[-1]}")


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
