"""The metric whose best value keeps a checkpoint, and the data it is measured on."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from detectron2.config import CfgNode

from part_robust.modeling import PART_SEGMENTER_REGISTRY
from part_robust.utils.errors import UserError


def validation_datasets(cfg: CfgNode) -> tuple[str, ...]:
    """Return the data sets that training evaluates on: DATASETS.VAL, and DATASETS.TEST only where there is no VAL."""
    return tuple(cfg.DATASETS.VAL or cfg.DATASETS.TEST)


def best_metric(cfg: CfgNode) -> str:
    """TEST.BEST_METRIC with "auto" resolved, as it is named in the event storage."""
    if cfg.TEST.BEST_METRIC != "auto":
        return cfg.TEST.BEST_METRIC
    task = "classification/accuracy" if cfg.MODEL.PART_CLASSIFIER.HEAD else "part_seg/pixel_accuracy"
    if cfg.ATTACK.TRAIN.ENABLED and cfg.ATTACK.EVAL_DURING_TRAINING:
        task = task.replace("/", f"_{cfg.ATTACK.EVAL_DURING_TRAINING[0]}/")
    watched = validation_datasets(cfg)
    return f"{watched[0]}/{task}" if len(watched) > 1 else task


# Metrics of the evaluators, by task; those of a single class or part are behind a "-".
METRICS = {
    "classification": ("accuracy", "class_mean_accuracy"),
    "part_seg": ("pixel_accuracy", "mIoU", "IoU"),
    "part_box": ("AP", "AP50"),
    "part_mask": ("AP", "AP50"),
}


def check_best_metric(cfg: CfgNode) -> None:
    """Check that an evaluation of the training gives TEST.BEST_METRIC.

    Raises:
        UserError: no evaluation of this training gives TEST.BEST_METRIC.
    """
    watched = validation_datasets(cfg)
    if not watched:
        return
    rows = ["clean", *(name for name in cfg.ATTACK.EVAL_DURING_TRAINING if cfg.ATTACK.TRAIN.ENABLED)]
    tasks = evaluated_tasks(cfg, rows)
    prefixes = [f"{name}/" for name in watched] if len(watched) > 1 else [""]
    known = [
        f"{prefix}{task}/{metric}"
        for prefix in prefixes for task, kind in tasks.items() for metric in METRICS[kind]
    ]  # fmt: skip
    if len(watched) == 1:
        check_expected(cfg, tasks)
    if cfg.TEST.EVAL_PERIOD == 0 and cfg.TEST.BEST_METRIC == "auto":
        return
    metric = best_metric(cfg)
    task, _, name = metric.rpartition("/")
    if f"{task}/{name.split('-')[0]}" not in known:
        shown = ", ".join(known for known in known if not known.endswith("/IoU"))
        raise UserError(f"TEST.BEST_METRIC must be auto or one of {shown}, got {cfg.TEST.BEST_METRIC!r}")


def evaluated_tasks(cfg: CfgNode, rows: Iterable[str]) -> dict[str, str]:
    """Return the tasks that an evaluation gives results of, each with its kind, a key of `METRICS`.

    Args:
        cfg: complete.
        rows: "clean", and names of what attacks the images.
    """
    model = cfg.MODEL.PART_CLASSIFIER
    kinds = ["classification"] if model.HEAD else []
    kinds += ["part_seg"] if model.SEGMENTER else []
    if model.SEGMENTER and cfg.TEST.PART_BOX_AP:
        kinds.append("part_box")
        kinds += ["part_mask"] if PART_SEGMENTER_REGISTRY.get(model.SEGMENTER).predicts_masks else []
    suffixes = ["" if row == "clean" else f"_{row}" for row in rows]
    return {f"{kind}{suffix}": kind for kind in kinds for suffix in suffixes}


def check_expected(cfg: CfgNode, tasks: Collection[str]) -> None:
    """Check the names of TEST.EXPECTED_RESULTS.

    Args:
        cfg: complete.
        tasks: that the evaluation of one data set gives.

    Raises:
        UserError: a task is not among them.
    """
    for task, *_ in cfg.TEST.EXPECTED_RESULTS:
        if task not in tasks:
            raise UserError(f"TEST.EXPECTED_RESULTS must name tasks ({', '.join(tasks)}), got {task!r}")
