"""How far a long evaluation is, in the log every few seconds."""

from __future__ import annotations

import datetime
import logging
import time

import numpy as np

from part_robust.evaluation.journal import BatchArrays
from part_robust.evaluation.named_arrays import ClassArrays, ImageArrays

logger = logging.getLogger(__name__)


class Progress:
    """Counts images and logs the running accuracies and the time that is left."""

    def __init__(
        self,
        total: int,
        headline: str,
        done: int = 0,
        processes: int = 1,
        period: float = 5.0,
        what: str = "Evaluation",
    ) -> None:
        """Set what is counted.

        Args:
            total: images of the data set.
            headline: the tier whose accuracy is shown, or "clean" where there is none.
            done: images that were done before.
            processes: that share the rest; each logs its own share, so what it sees is multiplied.
            period: seconds between two lines.
            what: is done, the first words of a line.
        """
        self.what = what
        self.total = total
        self.headline = headline
        self.done_before = done
        self.processes = processes
        self.period = period
        self.done_here = 0
        self._clean: list[np.ndarray] = []
        self._robust: list[np.ndarray] = []
        self._start = self._last = time.perf_counter()

    def count(self, batch: BatchArrays) -> None:
        """Takes a batch's accuracies in."""
        attacked = ClassArrays.find(batch, self.headline)
        if attacked is not None:
            labels = ImageArrays.read(batch).label
            self._clean.append(ClassArrays.read(batch, "clean").prediction == labels)
            self._robust.append(attacked.prediction == labels)

    def update(self, images: int) -> None:
        """So many images more are done."""
        self.done_here += images
        if time.perf_counter() - self._last >= self.period or self._done() >= self.total:
            self._log("")

    def note(self, what: str) -> None:
        """Says where inside a batch the evaluation is, if there was no line for long."""
        if time.perf_counter() - self._last >= self.period:
            self._log(f" Now: {what}.")

    def _done(self) -> int:
        return min(self.done_before + self.done_here * self.processes, self.total)

    def _log(self, what: str) -> None:
        now = time.perf_counter()
        self._last = now
        done = self._done()
        parts = [f"{self.what} done {done}/{self.total}."]
        if self._clean:
            shown = {"clean": self._clean, self.headline: self._robust}
            found = [f"{name} {100 * float(np.concatenate(flags).mean()):.1f} %" for name, flags in shown.items()]
            parts.append(f"So far {', '.join(found)}.")
        if self.done_here:
            per_image = (now - self._start) / (self.done_here * self.processes)
            left = datetime.timedelta(seconds=int(per_image * (self.total - done)))
            parts.append(f"{per_image:.2f} s/img. ETA={left}")
        logger.info("%s%s", " ".join(parts), what)
