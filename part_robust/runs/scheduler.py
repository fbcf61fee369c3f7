"""Many runs by one call: each after the run whose weights it begins from, in this process or several at a time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from part_robust.runs.run import Run

PERIOD = 0.2  # seconds between two checks of the processes
AT_ONCE = 1.0  # seconds; a shorter run has found that it was done, and says nothing about how long others take


@dataclass(frozen=True)
class Outcome:
    """Outcome of a run.

    Attributes:
        run: what was to be run.
        state: "finished", "failed", or "left out" because what it begins from failed.
        seconds: that it took; 0 where it was finished before.
        reason: one sentence; "" unless it failed or was left out.
    """

    run: Run
    state: str
    seconds: float = 0.0
    reason: str = ""


Poll = Callable[[], Outcome | None]  # the outcome of a run that has been started, None while it runs
Start = Callable[[Run], Poll]


def schedule(
    runs: Sequence[Run],
    start: Start,
    slots: int = 1,
    is_done: Callable[[Run], bool] = lambda run: False,
    log: str = "log.txt",
    say: Callable[[str], object] = print,
    done: Callable[[Outcome], object] = lambda outcome: None,
) -> list[Outcome]:
    """Execute the runs that are not finished. A run that fails stops those that begin from it and no others.

    Args:
        runs: in the order in which they begin where they can; `check_folders` has accepted them.
        start: `in_this_process(...)`, or what `processes(...)` gives.
        slots: runs at the same time.
        is_done: whether a run need not be started. Not for jobs of several processes, which must decide it together.
        log: file in a run's folder that has what it prints.
        say: takes lines about the progress.
        done: callback, receives every outcome at once.

    Returns:
        One outcome for each run, in the order of `runs`. Raises as `start` does.
    """
    outputs = {run.output for run in runs}
    waiting = list(runs)
    running: list[Poll] = []
    outcomes: dict[object, Outcome] = {}
    looked = set()  # outputs that were looked at: to compare configs takes longer than PERIOD
    begun = time.time()

    def conclude(outcome: Outcome) -> None:
        outcomes[outcome.run.output] = outcome
        done(outcome)

    while waiting or running:
        for run in list(waiting):
            before = outcomes.get(run.after)
            if run.after in outputs and before is None:
                continue  # what it begins from is not there yet
            if before is not None and before.state != "finished":
                waiting.remove(run)
                reason = f"begins from {before.run.output}, which {before.state}"
                say(f"{run.title}: left out, {reason}")
                conclude(Outcome(run, "left out", reason=reason))
            elif run.output not in looked and is_done(run):
                waiting.remove(run)
                say(f"{run.title}: finished before ({run.output})")
                conclude(Outcome(run, "finished"))
            elif len(running) < slots:
                waiting.remove(run)
                say(f"{run.title}: begins, log in {run.output / log}")
                running.append(start(run))
            else:
                looked.add(run.output)
        for poll in list(running):
            outcome = poll()
            if outcome is not None:
                running.remove(poll)
                conclude(outcome)
                say(_line(outcome, len(runs), list(outcomes.values()), slots, time.time() - begun))
        if running:
            time.sleep(PERIOD)
    return [outcomes[run.output] for run in runs]


def in_this_process(work: Callable[[Run], object]) -> Start:
    """Return a `start` that executes runs where it is called, also in each process of a job.

    `work` finds out itself whether a run is done; an error of it ends all runs.
    """

    def start(run: Run) -> Poll:
        begun = time.time()
        work(run)
        outcome = Outcome(run, "finished", time.time() - begun)
        return lambda: outcome

    return start


@contextmanager
def processes(slots: int, devices: Sequence[str] = ()) -> Iterator[Start]:
    """Give a `start` that executes each run in a process of its own.

    Ended by Ctrl-C or SIGTERM, it passes that on, so trainings save (engine/failures.py), and waits for them.

    Args:
        slots: processes at the same time, at least 1.
        devices: values for CUDA_VISIBLE_DEVICES, shared out among the processes.
    """
    free = list(range(slots))
    running: set[subprocess.Popen] = set()

    def start(run: Run) -> Poll:
        slot, begun = free.pop(0), time.time()
        process = _start_process(run, slots, devices[slot % len(devices)] if devices else None)
        running.add(process)

        def poll() -> Outcome | None:
            if process.poll() is None:
                return None
            running.remove(process)
            free.append(slot)
            return _outcome(run, process.returncode, time.time() - begun)

        return poll

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield start
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.wait()
        signal.signal(signal.SIGTERM, before)


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_slots(runs: Sequence[Run], devices: Sequence[str]) -> int:
    """Return how many runs are executed at the same time: one for each device or, on the CPU, one for each core.

    Small models gain little from more threads, but there are never more than 8, nor more than can run at the same time.
    Otherwise it is one.
    """
    if devices:
        return len(devices)
    if any(str(run.config.MODEL.DEVICE) != "cpu" for run in runs):
        return 1
    outputs = {run.output for run in runs}
    return max(1, min(cores(), 8, sum(run.after not in outputs for run in runs)))


def _start_process(run: Run, slots: int, device: str | None) -> subprocess.Popen:
    environment = dict(os.environ)
    threads = environment.setdefault("OMP_NUM_THREADS", str(max(1, cores() // slots)))
    # More threads than there are cores to run them wait for each other: that makes a training many times slower.
    environment.setdefault("MKL_NUM_THREADS", threads)
    if device is not None:
        environment["CUDA_VISIBLE_DEVICES"] = device
    run.output.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "part_robust.runs.experiment", "--config-file", run.config_file]
    with open(run.console, "w") as console:
        # A separate session: Ctrl-C reaches it through this process alone, and so once.
        return subprocess.Popen(
            [*command, *(str(value) for value in run.opts)],
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )


def _outcome(run: Run, code: int, seconds: float) -> Outcome:
    if code == 0:
        return Outcome(run, "finished", seconds)
    if code < 0:
        return Outcome(run, "failed", seconds, f"ended by {signal.Signals(-code).name} (out of memory?)")
    lines = [line for line in run.console.read_text(errors="replace").splitlines() if line.strip()]
    return Outcome(run, "failed", seconds, lines[-1].strip() if lines else f"exit code {code}")


def _line(outcome: Outcome, total: int, outcomes: Sequence[Outcome], slots: int, elapsed: float) -> str:
    """Return a line such as "resnet50: finished in 3.1 min; 4 of 10 done, about 12 min left"."""
    times = [each.seconds for each in outcomes if each.seconds > AT_ONCE]
    left = total - len(outcomes)
    rest = f", about {sum(times) / len(times) * left / slots / 60:.0f} min left" if left and times else ""
    return (
        f"{outcome.run.title}: {outcome.state} in {outcome.seconds / 60:.1f} min; "
        f"{len(outcomes)} of {total} done after {elapsed / 60:.0f} min{rest}"
    )
