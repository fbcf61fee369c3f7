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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing.connection import wait
from types import FrameType
from typing import Any

import torch
from detectron2.engine import default_argument_parser
from detectron2.engine.launch import DEFAULT_TIMEOUT
from torch import distributed, multiprocessing

from part_robust.config import get_part_robust_cfg
from part_robust.engine.failures import SIGNALS, Preempted
from part_robust.engine.process_exit import GONE, GRACE, REASON, ProcessExit, read_message
from part_robust.engine.process_group import LaunchError, ProcessInfo, process_from_environment, process_group
from part_robust.utils.errors import is_fixable, sentence, user_errors

INTERRUPTED = "Interrupted. The same command with --resume continues from the last checkpoint"


def launch(main: Callable[[argparse.Namespace], object], args: argparse.Namespace, device: str = "") -> None:
    """Runs `main(args)` in every process of the job, and exits with a sentence if one of them fails.

    Args:
        main: importable by name, as it is called in new processes.
        args: of detectron2's `default_argument_parser`.
        device: "cpu" or "cuda", which decides how the processes communicate; MODEL.DEVICE of the config by default.
    """
    try:
        check_flags(args)
        info = process_from_environment(os.environ, args)
        several = info is not None or args.num_gpus * args.num_machines > 1
        device = device or (job_device(args) if several else "")
        url = choose_url(args) if info is None and several else ""
    except LaunchError as error:
        sys.exit(sentence(error))
    if info is not None:
        _run_in_group(info, device, main, (args,), DEFAULT_TIMEOUT)
    elif several:
        run_processes(
            main,
            (args,),
            args.num_gpus,
            device=device,
            machines=args.num_machines,
            machine_rank=args.machine_rank,
            url=url,
        )
    else:
        _run_alone(main, args)


def check_flags(args: argparse.Namespace) -> None:
    """Check the numbers of processes and machines.

    Raises:
        LaunchError: a number of processes or machines is impossible.
    """
    if args.num_gpus < 1:
        raise LaunchError(
            f"--num-gpus must be at least 1, the number of processes on each machine, got {args.num_gpus}. Without a "
            "GPU give --num-gpus 1, and MODEL.DEVICE cpu at the end of the command"
        )
    if args.num_machines < 1:
        raise LaunchError(f"--num-machines must be at least 1, got {args.num_machines}")
    if not 0 <= args.machine_rank < args.num_machines:
        raise LaunchError(
            f"--machine-rank must be 0..{args.num_machines - 1} with --num-machines {args.num_machines}, got "
            f"{args.machine_rank}"
        )


def choose_url(args: argparse.Namespace) -> str:
    """--dist-url, or "auto" where it was not given: detectron2's default is one port for all jobs of a user.

    Raises:
        LaunchError: it must be given, or is not an address.
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
    """Type of MODEL.DEVICE, "cpu" or "cuda", as the config file and the command line have it.

    Raises:
        LaunchError: it names one GPU for several processes.
    """
    try:
        device = torch.device(get_part_robust_cfg(args.config_file, args.opts).MODEL.DEVICE)
    except Exception:  # the processes read the config again, and say what is wrong with it
        return "cpu"
    if device.index is not None:
        raise LaunchError(
            f"MODEL.DEVICE must be cuda or cpu with several processes, got {device}: each takes its own GPU"
        )
    return device.type


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
    start_method: str = "spawn",
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
        start_method: of multiprocessing. "forkserver" is faster, but the script must not touch a GPU when imported.

    Raises:
        SystemExit: a process has failed; its message is the reason. Preempted processes have none.
    """
    # On one machine the processes meet here, at a port that is free; the store also tells the reason of a failure.
    store = distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    address = f"127.0.0.1:{store.port}" if url == "auto" else url.removeprefix("tcp://")
    infos = [
        ProcessInfo(
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
    with _signals_passed_on() as received:
        context = multiprocessing.start_processes(
            _child,
            (infos, store.port, device, main, args, timeout),
            nprocs=number,
            join=False,
            start_method=start_method,
        )
        try:
            codes = _wait_for_end(context.processes)
        except KeyboardInterrupt:
            # Ctrl-C reaches the processes by itself; a signal to this process alone does not.
            _end(context.processes, signal.SIGINT)
            sys.stderr.write(f"{INTERRUPTED}\n")
            sys.exit(128 + signal.SIGINT)
    if codes:
        sys.exit(_outcome(codes, store, received))


def _wait_for_end(processes: Sequence[Any]) -> list[int]:
    """Waits for all processes, or for the end of the job by the failure of one.

    Returns:
        Exit codes of the processes that ended by themselves, in the order of their ends; empty if all are 0.
    """
    running = {process.sentinel: process for process in processes}
    codes: list[int] = []
    deadline = None
    while running:
        left = None if deadline is None else max(deadline - time.monotonic(), 0.0)
        ended = wait(list(running), left)
        if not ended:  # they have had the time to notice that another one is gone
            _end(list(running.values()), signal.SIGKILL)
            break
        for sentinel in ended:
            process = running.pop(sentinel)
            process.join()
            codes.append(process.exitcode)
        if any(codes) and deadline is None:
            deadline = time.monotonic() + 2 * GRACE
    return codes if any(codes) else []


def _outcome(codes: Sequence[int], store: distributed.Store, received: Sequence[int]) -> str | int:
    """Exit code or last line of a job of which a process has failed.

    Args:
        codes: exit codes of its processes, in the order of their ends.
        store: in which the processes leave their reasons.
        received: signals that were passed on to them.
    """
    reason = read_message(store, REASON)
    if reason:
        return reason
    if received:  # the processes have saved and ended, or had nothing to save yet
        return 128 + received[-1]
    killed = [signal.Signals(-code).name for code in codes if code < 0]
    if killed:
        guess = " (out of memory?)" if killed[0] == "SIGKILL" else ""
        return (
            f"a process of this machine was ended by {killed[0]}{guess}, and with it the job. The same command with "
            "--resume continues from the last checkpoint"
        )
    return read_message(store, GONE) or next(code for code in codes if code)


def _end(processes: Sequence[Any], number: int) -> None:
    """Sends a signal to the processes that do not end by themselves at once, and kills those that ignore it."""
    for sent, seconds in ((number, 1.0), (signal.SIGKILL, GRACE)):
        deadline = time.monotonic() + seconds
        for process in processes:
            process.join(max(deadline - time.monotonic(), 0.0))
            if process.is_alive():
                os.kill(process.pid, sent)
    for process in processes:
        process.join()


def _child(
    local_rank: int,
    infos: Sequence[ProcessInfo],
    launcher: int,
    device: str,
    main: Callable[..., object],
    args: tuple,
    timeout: timedelta,
) -> None:
    """One process that `run_processes` has started; `launcher` is the port of its store."""
    for number in SIGNALS:  # a forked process has the handlers of the one that passes them on
        signal.signal(number, signal.SIG_DFL)
    store = distributed.TCPStore("127.0.0.1", launcher, is_master=False, wait_for_workers=False)
    _run_in_group(infos[local_rank], device, main, args, timeout, store)


def _run_in_group(
    info: ProcessInfo,
    device: str,
    main: Callable[..., object],
    args: tuple,
    timeout: timedelta,
    launcher: distributed.Store | None = None,
) -> None:
    """Calls `main(*args)` as one process of a job. An error ends the process, with a sentence if it has one."""
    end = ProcessExit(info, launcher)
    try:
        with process_group(info, device, timeout, lost=end.lost, joined=end.join):
            _call(main, args)
    except KeyboardInterrupt:
        end.interrupt()
    except Preempted:  # after a checkpoint, in all processes
        raise
    except SystemExit as error:
        end.fail(error.code if isinstance(error.code, str) else f"ended with code {error.code}")
    except Exception as error:
        if is_fixable(error):
            end.fail(sentence(error))
        end.crash(error)


def _call(main: Callable[..., object], args: tuple) -> None:
    """Calls `main(*args)`; `sys.exit()` there is an end without an error."""
    try:
        main(*args)
    except SystemExit as error:
        if error.code not in (None, 0):
            raise


def _run_alone(main: Callable[[argparse.Namespace], object], args: argparse.Namespace) -> None:
    try:
        with user_errors():
            main(args)
    except KeyboardInterrupt:
        sys.stderr.write(f"{INTERRUPTED}\n")
        sys.exit(128 + signal.SIGINT)


@contextmanager
def _signals_passed_on() -> Iterator[list[int]]:
    """Passes SIGTERM and SIGUSR1 on to the child processes, which save a checkpoint and exit; yields what came."""
    received: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        received.append(number)
        for child in multiprocessing.active_children():
            if child.pid is not None:
                os.kill(child.pid, number)

    before = {number: signal.signal(number, pass_on) for number in SIGNALS}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
