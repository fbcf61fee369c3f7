"""The record of an evaluation run (`robustness.json`), and its results as a Markdown table."""

from __future__ import annotations

import hashlib
import math
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import detectron2
import torch
from tabulate import tabulate
from torch import nn

import part_robust
from part_robust.attacks import Attack
from part_robust.utils.files import file_sha256
from part_robust.utils.precision import describe_precision

SCHEMA = 2


def build_record(
    *,
    results: Mapping[str, Mapping],
    attacks: Mapping[str, Attack],
    warnings: Mapping[str, Sequence[str]],
    checkpoint: str,
    config: str,
    evaluations: Mapping[str, Mapping] | None = None,
    name: str = "",
    architecture: str = "",
    parameters: tuple[int, int] | None = None,
    pretraining: str = "",
    preprocessing: Mapping[str, Any] | None = None,
    source_sha256: str = "",
) -> dict:
    """Everything needed to judge and to repeat the numbers, and RobustBench's fields for the first data set.

    Args:
        results: data set -> task -> metric -> value.
        attacks: those that ran, by name.
        warnings: data set -> sentences.
        checkpoint: path of the weights; "" for random ones.
        config: the complete config as YAML.
        evaluations: of an evaluation with tiers, data set -> `describe_evaluation`'s result.
        name: of the model, for leaderboards.
        architecture: of the model.
        parameters: of `parameter_counts`.
        pretraining: training data of the weights before this training, a short text.
        preprocessing: of `describe_preprocessing`.
        source_sha256: of the Python source that makes the model, where it is a callable.
    """
    total, trainable = parameters or (None, None)
    dataset, results = next(iter(results), ""), measured(results)
    return {
        "schema": SCHEMA,
        **robustbench_fields(name, architecture, dataset, results.get(dataset, {}), attacks, evaluations or {}),
        "parameters": total,
        "trainable_parameters": trainable,
        "pretraining": pretraining,
        "results": results,
        "attacks": {name: attack.describe() for name, attack in attacks.items()},
        "warnings": warnings,
        "checkpoint": {
            "path": checkpoint,
            "sha256": file_sha256(checkpoint),
            **({"source_sha256": source_sha256} if source_sha256 else {}),
        },
        "preprocessing": dict(preprocessing or {}),
        "config_sha256": hashlib.sha256(config.encode()).hexdigest(),
        "config": config,
        "precision": describe_precision(),
        "versions": {
            "part_robust": part_robust.__version__,
            "torch": torch.__version__,
            "detectron2": detectron2.__version__,
            "python": platform.python_version(),
        },
        "evaluation": dict(evaluations or {}),
    }


def parameter_counts(model: nn.Module) -> tuple[int, int] | None:
    """Return the numbers in the model's parameters: all, and those that training moves.

    Buffers, such as statistics of norms and norms that are frozen, are in neither. None for a model without parameters,
    such as a frozen graph, whose weights are constants.
    """
    parameters = list(model.parameters())
    if not parameters:
        return None
    return sum(p.numel() for p in parameters), sum(p.numel() for p in parameters if p.requires_grad)


def robustbench_fields(
    name: str,
    architecture: str,
    dataset: str,
    tasks: Mapping[str, Mapping[str, float]],
    attacks: Mapping[str, Attack],
    evaluations: Mapping[str, Mapping],
) -> dict[str, Any]:
    """The top-level fields that RobustBench's records have, for one data set; None for what was not measured.

    `reported` is the accuracy of the strongest tier that ran, `autoattack_acc` that of tier "standard", under the first
    one of TEST.THREATS. `number_forward_passes` is what the model needs for one prediction.
    """
    evaluation = evaluations.get(dataset, {})
    tiers = evaluation.get("tiers", {})
    threat = next((attack.threat_model for attack in attacks.values()), None)
    headline = tiers.get(evaluation.get("headline"), {})
    is_standard = evaluation.get("headline") in (evaluation.get("unions") or {}).get("standard_union", {}).get(
        "tiers", ()
    )
    reported = headline.get("robust", {}).get("accuracy")
    if not evaluation:
        accuracies = [tasks.get(f"classification_{attack}", {}).get("accuracy") for attack in attacks]
        reported = min((value for value in accuracies if value is not None), default=None)
    return {
        "name": name,
        "dataset": dataset,
        "architecture": architecture,
        "eps": evaluation.get("eps", threat.eps if threat else None),
        "norm": evaluation.get("norm", threat.norm if threat else None),
        "clean_acc": tasks.get("classification", {}).get("accuracy"),
        "autoattack_acc": (headline if is_standard else tiers.get("standard", {})).get("robust", {}).get("accuracy"),
        "reported": reported,
        "unreliable": not evaluation.get("reportable", True),
        "number_forward_passes": 1,
    }


def measured(value: Any) -> Any:
    """A number, None where there was nothing to measure it on, which evaluators say as NaN; JSON has no NaN.

    Args:
        value: or a mapping of such values at any depth.
    """
    if isinstance(value, Mapping):
        return {key: measured(entry) for key, entry in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value


def results_table(results: Mapping[str, Mapping], attacks: Mapping[str, Attack]) -> str:
    """One row per data set and attack: accuracy, pixel accuracy, mIoU, AP and AP50 of part boxes, images."""
    rows = []
    for dataset, tasks in measured(results).items():
        for name in ("", *attacks):
            suffix = f"_{name}" if name else ""
            classes = tasks.get(f"classification{suffix}", {})
            parts = tasks.get(f"part_seg{suffix}", {})
            boxes = tasks.get(f"part_box{suffix}", {})
            threat = attacks[name].threat_model if name else None
            rows.append(
                [
                    dataset,
                    f"{name} ({threat.norm} {threat.eps:g}/255)" if threat else "clean",
                    classes.get("accuracy"),
                    parts.get("pixel_accuracy"),
                    parts.get("mIoU"),
                    boxes.get("AP"),
                    boxes.get("AP50"),
                    int(classes.get("num_images") or parts.get("num_images") or 0),
                ]
            )
    headers = ["data set", "images are", "accuracy %", "pixel accuracy %", "mIoU %", "AP", "AP50", "images"]
    return tabulate(rows, headers, tablefmt="github", floatfmt=".2f", missingval="-")
