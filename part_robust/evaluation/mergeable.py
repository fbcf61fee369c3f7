"""Evaluators whose state is plain arrays: of one process, of several, or of the batches of an earlier run."""

from __future__ import annotations

from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Iterable, Mapping

import numpy as np
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from part_robust.utils.processes import wait_for_all


class MergeableEvaluator(DatasetEvaluator):
    """A `DatasetEvaluator` that separates gathering from scoring.

    `evaluate`, which every process calls, gathers what the processes have seen. `score` computes the metrics of what
    this evaluator has absorbed and communicates with no other process, so that rank 0 may call it alone.
    """

    @abstractmethod
    def partial(self) -> dict[str, np.ndarray]:
        """Returns what was processed since `reset`, for `absorb`: plain arrays."""

    @abstractmethod
    def absorb(self, partial: Mapping[str, np.ndarray]) -> None:
        """Adds what another evaluator's `partial` returned."""

    @abstractmethod
    def score(self) -> OrderedDict:
        """Returns task -> metric -> value of everything processed or absorbed since `reset`."""

    def score_merged(self, partials: Iterable[Mapping[str, np.ndarray]]) -> OrderedDict:
        """Returns the metrics of the `partials` together. The evaluator is left reset."""
        self.reset()
        for partial in partials:
            self.absorb(partial)
        results = self.score()
        self.reset()
        return results

    def evaluate(self) -> OrderedDict | None:
        """Returns the metrics of all processes' images on rank 0, None elsewhere. Every process must call it.

        It waits for the others however long their images take. `prepare_to_wait` comes before images that take hours.
        """
        if comm.get_world_size() == 1:
            return self.score()
        wait_for_all()
        own = self.partial()
        gathered = comm.gather(own, dst=0)
        if not comm.is_main_process():
            return None
        results = self.score_merged(gathered)
        self.absorb(own)
        return results
