"""Which evaluators a model and a data set need."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators

from part_robust.evaluation.classification import ClassificationEvaluator
from part_robust.evaluation.conversion import host_outputs
from part_robust.evaluation.part_detection import PartDetectionEvaluator
from part_robust.evaluation.part_segmentation import PartSegmentationEvaluator


class HostEvaluators(DatasetEvaluators):
    """Evaluators that share one copy of a batch's outputs from the device (`host_outputs`)."""

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        super().process(inputs, host_outputs(outputs))


def build_evaluator(cfg: CfgNode, dataset_name: str) -> DatasetEvaluators:
    """Class accuracy if the model has a head, part metrics if it has a segmenter.

    Raises:
        ValueError: the data set has other classes or parts than the model.
    """
    metadata = MetadataCatalog.get(dataset_name)
    if not metadata.get("object_classes"):
        DatasetCatalog.get(dataset_name)
    model = cfg.MODEL.PART_CLASSIFIER
    for key, names in (("NUM_CLASSES", metadata.object_classes), ("NUM_PARTS", metadata.thing_classes)):
        expected = model[key]
        if expected not in (0, len(names)):
            raise ValueError(
                f"dataset {dataset_name!r} has {len(names)} {key[4:].lower()}, "
                f"MODEL.PART_CLASSIFIER.{key} is {expected}"
            )
    evaluators: list[DatasetEvaluator] = []
    if model.HEAD:
        evaluators.append(ClassificationEvaluator(metadata.object_classes))
    if model.SEGMENTER:
        evaluators.append(PartSegmentationEvaluator(metadata.thing_classes))
        if cfg.TEST.PART_BOX_AP:
            evaluators.append(PartDetectionEvaluator(metadata.thing_classes))
    return HostEvaluators(evaluators)
