"""Many runs, several at a time: each in a separate process, after the run whose weights it starts from."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from part_robust.config import get_part_robust_cfg
from part_robust.engine.begun import LAST, is_begun
from part_robust.runs.experiment import FINISHED, Phase, finished_record, phase_fingerprint
from part_robust.runs.phases import TRAINED, is_trained

CONSOLE = "console.txt"  # what a run prints, in its folder
PERIOD = 0.2  # seconds between two checks of the processes


@dataclass(frozen=True)
class Job:
    """A run of a suite.

    Attributes:
        phase: what is run.
        output: its OUTPUT_DIR.
        after: OUTPUT_DIR of the run whose weights it begins from, if that is one of the suite.
        device: MODEL.DEVICE.
    """

    phase: Phase
    output: Path
    after: Path | None
    device: str

    @property
    def console(self) -> Path:
        """File that takes what the run prints."""
        return self.output / CONSOLE


@dataclass(frozen=True)
class Outcome:
    """Outcome of a run of a suite.

    Attributes:
        job: what was to be run.
        state: "finished", "failed", or "left out" because what it begins from failed.
        seconds: that it took; 0 where it was finished before.
        reason: one sentence; "" unless it failed or was left out.
    """

    job: Job
    state: str
    seconds: float = 0.0
    reason: str = ""


def plan(phases: Sequence[Phase]) -> list[Job]:
    """Validate the configs before any work.

    Raises:
        FileNotFoundError, KeyError: as `get_part_robust_cfg`.
        ValueError: two runs have one OUTPUT_DIR.
    """
    cfgs = [get_part_robust_cfg(phase.config_file, [str(value) for value in phase.opts]) for phase in phases]
    outputs = [Path(cfg.OUTPUT_DIR) for cfg in cfgs]
    for phase, output in zip(phases, outputs, strict=True):
        if outputs.count(output) > 1:
            raise ValueError(f"OUTPUT_DIR {output} of {phase.title} is that of another run, too: each needs its own")
    jobs = []
    for phase, output, cfg in zip(phases, outputs, cfgs, strict=True):
        source = Path(cfg.MODEL.WEIGHTS).parent if cfg.MODEL.WEIGHTS else None
        jobs.append(Job(phase, output, source if source in outputs else None, str(cfg.MODEL.DEVICE)))
    return jobs


def states(jobs: Sequence[Job]) -> list[str]:
    """Return the state of each job.

    "finished"; "trained, evaluates" (for the first time) or "trained, evaluates again" (in another way); "begun" (it
    continues); "other config" (it starts anew in that folder); "to do"; or "after X", of which the run X is still to be
    trained: all there is of it is kept only if X's weights come out as they were.

    Raises:
        FileNotFoundError, ImportError, KeyError, ValueError: as `complete_config`, where there is a config to check.
    """
    found = {job.output: _state(job) for job in jobs}
    after = {job.output: job.after for job in jobs}
    unsure: dict[Path, str] = {}

    def trains(output: Path | None) -> bool:
        return output in found and (found[output] in ("begun", "other config", "to do") or trains(after[output]))

    for job in jobs:
        if job.after is not None and trains(job.after) and found[job.output] not in ("other config", "to do"):
            unsure[job.output] = f"after {job.after.name}"
    return [unsure.get(job.output, found[job.output]) for job in jobs]


def _state(job: Job) -> str:
    """Return the state of a job as if what it begins from were finished."""
    if not any((job.output / name).is_file() for name in (FINISHED, TRAINED, LAST)):
        return "to do"
    wanted = phase_fingerprint(job.phase)
    if finished_record(job.phase, wanted) is not None:
        return "finished"
    if is_trained(job.output, wanted):
        return "trained, evaluates" + (" again" if (job.output / FINISHED).is_file() else "")
    if not (job.output / LAST).is_file():
        return "to do"
    return "begun" if is_begun(job.output, wanted) else "other config"


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_processes(jobs: Sequence[Job], devices: Sequence[str]) -> int:
    """Return the number of processes: one for each device or, on the CPU, one for each core.

    Small models gain little from more threads, but there are never more than 8, nor more than can run at the same time.
    Otherwise it is one.
    """
    if devices:
        return len(devices)
    if any(job.device != "cpu" for job in jobs):
        return 1
    return max(1, min(cores(), 8, sum(job.after is None for job in jobs)))


def run_jobs(
    jobs: Sequence[Job],
    processes: int,
    devices: Sequence[str] = (),
    say: Callable[[str], None] = print,
    done: Callable[[Outcome], None] = lambda outcome: None,
) -> list[Outcome]:
    """Execute the runs that are not finished. A run that fails stops those that start from it and no others.

    Ended by Ctrl-C or SIGTERM, it passes that on, so trainings save, and waits for them.

    Args:
        jobs: of `plan`, in the order in which they begin where they can.
        processes: at the same time, at least 1.
        devices: values for CUDA_VISIBLE_DEVICES, shared out among the processes.
        say: takes lines about the progress.
        done: callback, receives every outcome at once.

    Returns:
        One outcome for each job, in the order of `jobs`.
    """
    outputs = {job.output for job in jobs}
    waiting = list(jobs)
    running: dict[subprocess.Popen, tuple[Job, int, float]] = {}
    outcomes: dict[Path, Outcome] = {}
    looked: set[Path] = set()  # outputs that were looked at: to compare configs takes longer than PERIOD
    free = list(range(processes))
    begun = time.time()

    def conclude(outcome: Outcome) -> None:
        outcomes[outcome.job.output] = outcome
        done(outcome)

    with _terminate_on_exit(running):
        while waiting or running:
            for job in list(waiting):
                before = outcomes.get(job.after) if job.after else None
                if job.after in outputs and before is None:
                    continue  # what it begins from is not there yet
                if before is not None and before.state != "finished":
                    waiting.remove(job)
                    conclude(Outcome(job, "left out", reason=f"begins from {before.job.output}, which {before.state}"))
                elif job.output not in looked and finished_record(job.phase) is not None:
                    waiting.remove(job)
                    say(f"{job.phase.title}: finished before ({job.output})")
                    conclude(Outcome(job, "finished"))
                elif free:
                    waiting.remove(job)
                    slot = free.pop(0)
                    say(f"{job.phase.title}: begins, log in {job.console}")
                    running[_start(job, slot, processes, devices)] = (job, slot, time.time())
                else:
                    looked.add(job.output)
            for process in [process for process in running if process.poll() is not None]:
                job, slot, start = running.pop(process)
                free.append(slot)
                outcome = _outcome(job, process.returncode, time.time() - start)
                conclude(outcome)
                say(_line(outcome, len(jobs), list(outcomes.values()), processes, time.time() - begun))
            if running:
                time.sleep(PERIOD)
    return [outcomes[job.output] for job in jobs]


def _start(job: Job, slot: int, processes: int, devices: Sequence[str]) -> subprocess.Popen:
    environment = dict(os.environ)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        environment.setdefault(name, str(max(1, cores() // processes)))
    if devices:
        environment["CUDA_VISIBLE_DEVICES"] = devices[slot % len(devices)]
    job.output.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "part_robust.runs.experiment", "--config-file", job.phase.config_file]
    with open(job.console, "w") as console:
        # A separate session: Ctrl-C reaches it through this process alone, and so once.
        return subprocess.Popen(
            [*command, *(str(value) for value in job.phase.opts)],
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )


def _outcome(job: Job, code: int, seconds: float) -> Outcome:
    if code == 0:
        return Outcome(job, "finished", seconds)
    if code < 0:
        return Outcome(job, "failed", seconds, f"ended by {signal.Signals(-code).name} (out of memory?)")
    lines = [line for line in job.console.read_text(errors="replace").splitlines() if line.strip()]
    return Outcome(job, "failed", seconds, lines[-1].strip() if lines else f"exit code {code}")


def _line(outcome: Outcome, total: int, outcomes: Sequence[Outcome], processes: int, elapsed: float) -> str:
    """Return a line such as "resnet50: finished in 3.1 min; 4 of 10 done, about 12 min left"."""
    times = [each.seconds for each in outcomes if each.seconds]
    left = total - len(outcomes)
    rest = f", about {sum(times) / len(times) * left / processes / 60:.0f} min left" if left else ""
    return (
        f"{outcome.job.phase.title}: {outcome.state} in {outcome.seconds / 60:.1f} min; "
        f"{len(outcomes)} of {total} done after {elapsed / 60:.0f} min{rest}"
    )


@contextmanager
def _terminate_on_exit(running: Collection[subprocess.Popen]) -> Iterator[None]:
    """Leaves no process behind: trainings save on SIGTERM (engine/failures.py)."""

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.wait()
        signal.signal(signal.SIGTERM, before)
