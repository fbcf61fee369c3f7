"""How a process of a job ends: with one sentence, said once, that the other processes and the launcher can read."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from typing import NoReturn

from torch import distributed

from part_robust.engine.process_group import ProcessInfo
from part_robust.utils.errors import sentence
from part_robust.utils.processes import pass_failure_on

# Keys of a store: the reason of the first process that failed, and the first sentence about a process that is gone
# without a reason.
REASON, GONE = "part_robust/reason", "part_robust/gone"
ENDED = "part_robust/ended"
# Seconds for the processes of a job to learn which of them has failed.
GRACE = 5.0


class ProcessExit:
    """Ends one process of a job and says why.

    The reason goes to the stores, where the other processes and the launcher find it; the launcher writes it as the
    last line of the job. Without a launcher every process writes the reason itself.
    """

    def __init__(self, info: ProcessInfo, launcher: distributed.Store | None = None) -> None:
        """Set the processes that are notified of the end of this one.

        Args:
            info: of this process.
            launcher: store of the process that has started this one and writes the last line of the job.
        """
        self.info = info
        self.launcher = launcher
        self.stores: list[distributed.Store] = [launcher] if launcher is not None else []
        self._ending = threading.Lock()

    def join(self, store: distributed.Store) -> None:
        """Adds the store at which all processes of the job meet."""
        # A separate connection: that of the process group may be inside a blocking call.
        self.stores.append(store.clone() if hasattr(store, "clone") else store)

    def fail(self, reason: str, key: str = REASON) -> NoReturn:
        """End this process after its own error; `key` is GONE for one that another process may have caused."""
        self._once()
        self._leave(key, f"process {self.info.rank}: {reason}")
        self._exit(self._found(REASON) or reason)

    def crash(self, error: Exception) -> NoReturn:
        """Ends this process because of an unexpected error, or of one that the end of another process has caused."""
        broken_connection = isinstance(error, distributed.DistError) or "gloo" in str(error).lower()
        if broken_connection:
            self._wait_for_a_reason()
        traceback.print_exc()
        # The launcher knows whether a process was killed, which explains more than a broken connection.
        self.fail(sentence(error).splitlines()[0], GONE if broken_connection else REASON)

    def lost(self, message: str) -> NoReturn:
        """Ends this process because another one is gone."""
        self._once()
        reason = self._found(REASON)
        message = reason or self._found(GONE) or message
        self._leave(REASON if reason else GONE, message)
        self._exit(message)

    def interrupt(self) -> NoReturn:
        """Ends this process after SIGINT."""
        self._once()
        self._exit("", code=130)

    def _wait_for_a_reason(self) -> None:
        """Ends this process as `lost` does if another process leaves its reason, or is gone, within `GRACE`."""
        deadline = time.monotonic() + GRACE
        while time.monotonic() < deadline:
            if message := self._found(REASON) or self._found(GONE):
                self.lost(message)
            time.sleep(0.05)

    def _once(self) -> None:
        """The first thread that ends the process does so; others wait here for the end."""
        self._ending.acquire()

    def _leave(self, key: str, message: str) -> None:
        for store in self.stores:
            try:
                store.compare_set(key, "", message)
            except RuntimeError:  # it was hosted by a process that is gone
                continue

    def _found(self, key: str) -> str:
        return next((message for store in self.stores if (message := read_message(store, key))), "")

    def _exit(self, message: str, code: int = 1) -> NoReturn:
        pass_failure_on()
        if message and self.launcher is None:
            print(message, file=sys.stderr)  # noqa: T201 (the last line of this process)
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        for worker in multiprocessing.active_children():
            worker.terminate()
        self._let_others_read()
        # Destructors of process groups wait for the other processes, or abort this one.
        os._exit(code)

    def _let_others_read(self) -> None:
        """Rank 0 keeps the store that it hosts until the others have read it; those that were killed never do."""
        deadline = time.monotonic() + 0.2 * GRACE
        with contextlib.suppress(RuntimeError):
            for store in self.stores[-1:]:
                store.add(ENDED, 1)
                while self.info.hosts_store and time.monotonic() < deadline:
                    if store.add(ENDED, 0) >= self.info.world_size:
                        break
                    time.sleep(0.02)


def read_message(store: distributed.Store, key: str) -> str:
    """The message under a key of a store; "" where there is none, or the store's host is gone."""
    try:
        return store.get(key).decode() if store.check([key]) else ""
    except RuntimeError:
        return ""


__all__: Sequence[str] = ["GONE", "REASON", "ProcessExit", "read_message"]
