"""Runs a function over many units in several processes; a process that dies ends the run instead of hanging it."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import Any

import cv2

_CHUNK = 8  # units that a worker fetches at a time
_AHEAD = 4  # chunks per worker that wait in memory


def in_parallel(
    process: Callable[[Any], Any], units: Iterable[tuple[str, Any]], workers: int
) -> Iterator[tuple[str, Any]]:
    """Yields (key, process(payload)) of every unit, in any order.

    Args:
        process: a function that other processes can import, or a partial of one.
        units: (key, payload).
        workers: processes; 0 or 1 works in this one.

    Raises:
        RuntimeError: a worker died, for example because the memory ran out.
    """
    if workers <= 1:
        for key, payload in units:
            yield key, process(payload)
        return
    # Forked from a small server process: neither this process's threads nor its memory come along.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=(process,)) as pool:
        try:
            yield from _run(pool, iter(units), workers)
        except BrokenProcessPool as error:
            raise RuntimeError(
                "a worker process died, most likely because the memory ran out: repeat the command with fewer --workers"
            ) from error


def _run(pool: ProcessPoolExecutor, units: Iterator[tuple[str, Any]], workers: int) -> Iterator[tuple[str, Any]]:
    pending: set[Future] = set()
    while True:
        while len(pending) < workers * _AHEAD and (chunk := list(islice(units, _CHUNK))):
            pending.add(pool.submit(_run_in_worker, chunk))
        if not pending:
            return
        done, pending = wait(pending, return_when=FIRST_COMPLETED)
        for future in done:
            yield from future.result()


_worker_process: Callable[[Any], Any] | None = None


def _start_worker(process: Callable[[Any], Any]) -> None:
    global _worker_process
    _worker_process = process
    cv2.setNumThreads(1)  # the workers already use all cores


def _run_in_worker(chunk: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
    assert _worker_process is not None
    return [(key, _worker_process(payload)) for key, payload in chunk]
