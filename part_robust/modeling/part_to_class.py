"""From part scores to class scores through the part-to-class matrix of the data set.

Letters: C classes, P parts, E classes without parts (PACO's ball and napkin).
"""

from __future__ import annotations

import difflib

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog
from torch import Tensor, nn


def part_metadata(name: str) -> Metadata:
    """Metadata of a registered part data set; reads its json on the first call.

    Raises:
        KeyError: no data set of this name is registered.
        ValueError: the data set was not registered by `register_part_dataset`.
    """
    metadata = MetadataCatalog.get(name)
    if not metadata.get("object_classes"):
        if name not in DatasetCatalog.list():
            similar = difflib.get_close_matches(name, DatasetCatalog.list())
            hint = f" (similar: {', '.join(similar)})" if similar else ""
            raise KeyError(
                f"DATASETS must name registered data sets, got {name!r}{hint}. Register your own with "
                "DATASETS.REGISTER [[name, part json, image root]]"
            )
        DatasetCatalog.get(name)  # reads the json, which fills the metadata in
    if not metadata.get("object_classes"):
        raise ValueError(f"dataset {name!r} is not a part dataset: use part_robust.data.register_part_dataset")
    return metadata


def part_to_class_matrix(cfg: CfgNode) -> np.ndarray:
    """float32 (P, C) of the first training set: 1 where the part belongs to the class, else 0.

    Raises:
        ValueError: DATASETS.TRAIN is empty, or has other numbers of classes and parts than the config.
    """
    if not cfg.DATASETS.TRAIN:
        raise ValueError("the part-to-class matrix comes from the training set, and DATASETS.TRAIN is empty")
    name = cfg.DATASETS.TRAIN[0]
    matrix = np.asarray(part_metadata(name).part_to_class, dtype=np.float32)
    node = cfg.MODEL.PART_CLASSIFIER
    if matrix.shape != (node.NUM_PARTS, node.NUM_CLASSES):
        raise ValueError(
            f"dataset {name!r} has {matrix.shape[0]} parts and {matrix.shape[1]} classes, "
            f"MODEL.PART_CLASSIFIER.NUM_PARTS is {node.NUM_PARTS} and NUM_CLASSES {node.NUM_CLASSES}"
        )
    return matrix


class PartToClass(nn.Module):
    """Class scores = part scores x matrix.

    Under a fixed matrix the logit of a class without parts would be zero whatever the image shows. It gets instead
        "column": a learned column, so that it reads the other classes' parts, whose absence is evidence for it, or
        "bias": one learned number, so that classes are read from their own parts alone; but of several classes
            without parts only the one of the largest number is ever predicted.
    A learned matrix has learned columns for all classes.

    `matrix` is in the checkpoint either way, so a trained model keeps the taxonomy that it was trained with.
    """

    matrix: Tensor
    empty: Tensor  # int64, indices of the classes without parts

    @configurable
    def __init__(
        self, *, matrix: np.ndarray, learned: bool = False, normalize: bool = False, empty_classes: str = "column"
    ) -> None:
        """Set the matrix, and what is learned of it.

        Args:
            matrix: (P, C), 1 where the part belongs to the class, else 0.
            learned: the matrix is where training starts, not where it stays.
            normalize: divide each column by its number of parts.
            empty_classes: "column" or "bias".

        Raises:
            ValueError: an unknown `empty_classes`; a fixed matrix that gives all classes the same score.
        """
        super().__init__()
        if empty_classes not in ("column", "bias"):
            raise ValueError(f"MODEL.PART_TO_CLASS.EMPTY_CLASSES must be column or bias, is {empty_classes!r}")
        if not learned and matrix.shape[1] > 1 and len(matrix) and bool((matrix == matrix[:, :1]).all()):
            raise ValueError(
                "MODEL.PART_TO_CLASS.LEARNED must be True where all classes have the same parts (as INPUT.PART_LABELS "
                "foreground makes them), got False: no score would tell them apart. Or take a model that does not "
                "read the class from this matrix, such as deeplab_two_headed"
            )
        counts = matrix.sum(axis=0)
        columns = torch.as_tensor(matrix / np.maximum(counts, 1.0) if normalize else matrix, dtype=torch.float32)
        empty = np.flatnonzero(counts == 0)
        self.register_buffer("empty", torch.as_tensor(empty, dtype=torch.int64), persistent=False)
        # Not zero, or the classes without parts would start out as one.
        free = 0.01 * torch.randn(len(matrix), len(empty))
        self.empty_columns: nn.Parameter | None = None
        self.empty_bias: nn.Parameter | None = None
        if learned:
            self.matrix = nn.Parameter(columns.index_copy(1, self.empty, free))
        else:
            self.register_buffer("matrix", columns)
            if len(empty) and empty_classes == "column":
                self.empty_columns = nn.Parameter(free)
            elif len(empty):
                self.empty_bias = nn.Parameter(torch.zeros(len(empty)))

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        node = cfg.MODEL.PART_TO_CLASS
        return {
            "matrix": part_to_class_matrix(cfg),
            "learned": node.LEARNED,
            "normalize": node.NORMALIZE,
            "empty_classes": node.EMPTY_CLASSES,
        }

    def forward(self, part_scores: Tensor) -> Tensor:
        """(..., P) -> (..., C)."""
        matrix = self.matrix
        if self.empty_columns is not None:
            matrix = matrix.index_copy(1, self.empty, self.empty_columns.to(matrix.dtype))
        logits = part_scores @ matrix.to(part_scores.dtype)
        if self.empty_bias is not None:
            logits = logits.index_add(-1, self.empty, self.empty_bias.to(logits.dtype).expand(*logits.shape[:-1], -1))
        return logits
