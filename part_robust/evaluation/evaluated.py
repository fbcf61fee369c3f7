"""A data set whose images have all been evaluated, for checks that evaluate some of them once more."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from detectron2.config import CfgNode
from torch import nn

from part_robust.data import PartDatasetMapper
from part_robust.evaluation.batch_arrays import Merged
from part_robust.evaluation.plan import Plan


@dataclass(frozen=True)
class EvaluatedData:
    """An evaluated data set.

    Attributes:
        cfg: of the evaluation.
        model: as it was evaluated.
        name: of the data set.
        records: of its images.
        plan: of the evaluation.
        merged: what came out.
    """

    cfg: CfgNode
    model: nn.Module
    name: str
    records: Sequence[dict]
    plan: Plan
    merged: Merged

    @functools.cached_property
    def _by_id(self) -> dict[int, dict]:
        return {record["image_id"]: record for record in self.records}

    @functools.cached_property
    def _mapper(self) -> PartDatasetMapper:
        return PartDatasetMapper(self.cfg, is_train=False, dataset_name=self.name)

    def items(self, image_ids: Iterable[int]) -> list[dict]:
        """Return the mapper's dicts of these images, in this order."""
        return [self._mapper(self._by_id[image_id]) for image_id in image_ids]
