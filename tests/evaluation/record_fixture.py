"""A record as an evaluation writes it, made up but consistent, with its flags and pictures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from part_robust.evaluation.checks import wilson

CLASSES = ["<b>lamp</b>", "sign & post", "bird"]
PARTS = ["head", "<i>wing</i>"]
DATASET = "toy_test"
IMAGES, CLEAN, SCREEN, STANDARD, THESIS = 1200, 900, 420, 400, 500


def score(correct: int, total: int = IMAGES) -> dict:
    return {"correct": correct, "accuracy": 100.0 * correct / total, "interval": list(wilson(correct, total))}


def tier_attack(name: str, after: int, before: int, alone: int | None = None) -> dict:
    return {
        "name": name,
        "attacked_images": before,
        "accuracy_alone": None if alone is None else 100.0 * alone / IMAGES,
        "accuracy_after": 100.0 * after / IMAGES,
        "forwards": 100 * before,
        "backwards": 100 * before,
        "seconds": 12.5,
    }


def matrix_row(attack: str, head: str | None, *values: float | None) -> dict:
    return {"attack": attack, "head": head} | dict(
        zip(("accuracy", "pixel_accuracy", "mIoU", "AP", "AP50"), values, strict=True)
    )


def evaluation() -> dict:
    """One data set's entry."""
    class_objective = "class accuracy, worst case per image"
    return {
        "num_images": IMAGES,
        "image_list_sha256": "ab" * 32,
        "classes": CLASSES,
        "parts": PARTS,
        "headline": "standard",
        "eps": 8.0,
        "norm": "linf",
        "seeds": {"apgd_ce": 0, "square": 0},
        "seconds": 4000.0,
        "device": "CPU",
        "forwards": 700_000,
        "backwards": 300_000,
        "clean": score(CLEAN),
        "worst_case": score(STANDARD),
        "tiers": {
            "thesis": {
                "objective": "class accuracy, every attack on every image",
                "attacks": [tier_attack("pgd100x5", THESIS, IMAGES, THESIS)],
                "robust": score(THESIS),
            },
            "standard": {
                "objective": class_objective,
                "attacks": [
                    tier_attack("apgd_ce", 430, CLEAN, 430),
                    tier_attack("apgd_t", SCREEN, 430),
                    tier_attack("fab_t", 401, SCREEN),
                    tier_attack("square", STANDARD, 401),
                ],
                "robust": score(STANDARD),
            },
            "parts": {
                "objective": "pixel accuracy, worst case per image",
                "attacks": [{**tier_attack("segpgd", 1, 1), "accuracy_after": 61.0, "accuracy_alone": 61.0}],
                "robust": {"correct": 610_000, "accuracy": 61.0, "interval": [60.0, 62.0]},
                "mIoU": 41.0,
                "lost_parts": [
                    {"attack": "segpgd", "parts": 9000, "found": 5000, "lost": 2717}
                    | {"missed": 1501, "wrong_part": 1000, "badly_placed": 216}
                ],
            },
        },
        "attack_matrix": [
            matrix_row("clean", None, 75.0, 80.0, 60.0, 30.0, 50.0),
            matrix_row("thesis", "class", 41.7, 70.0, 50.0, 20.0, 40.0),
            matrix_row("standard", "class", 33.3, 72.0, 52.0, None, None),
            matrix_row("segpgd", "part", 60.0, 61.0, 41.0, 15.0, 31.0),
        ],
        "eps_curve": [{"eps": eps, **score(n)} for eps, n in ((0, 900), (4, 650), (8, 400), (16, 90), (32, 2))],
        "convergence": {
            "apgd_ce": [2.0 - 1.5 * 0.9**step for step in range(100)],
            "pgd100x5": [1.9 - 1.5 * 0.93**step for step in range(100)],
        },
        "per_class": [
            {"name": name, "images": 400, "clean": 75.0 + i, "robust": 30.0 + 5 * i} for i, name in enumerate(CLASSES)
        ],
        "per_part": [
            {"name": name, "pixels": 1000 * (i + 1), "clean": 60.0, "attacked": 40.0}
            for i, name in enumerate([*PARTS, "background"])
        ],
        "by_size": [
            {"low": 0.01, "high": 0.1, "images": 600, "clean": 70.0, "robust": 25.0},
            {"low": 0.1, "high": 0.8, "images": 600, "clean": 80.0, "robust": 41.0},
        ],
        "clean_to_attacked": [[150, 80, 20], [60, 130, 160], [5, 175, 120]],
        "fab_distances": list(np.linspace(1.0, 20.0, 50)),
        "checks": [
            {
                "id": "C6",
                "name": "gradient",
                "level": "error",
                "status": "pass",
                "value": 0.01,
                "sentence": "error 0.01",
                "remedy": "",
            },
            {
                "id": "C13",
                "name": "black box",
                "level": "warning",
                "status": "fail",
                "value": 0.3,
                "sentence": "Square broke <3>",
                "remedy": "look at C6",
            },
        ],
        "reportable": True,
        "verdict": "standard: 33.3 % robust [30.7, 36.0]",
        "files": {"flags": f"flags_{DATASET}.npz", "adversarials": None, "pictures": f"pictures_{DATASET}.npz"},
    }


ATTACKS = {
    "pgd100x5": {
        "attack": "PGD",
        "objective": "cross_entropy",
        "threat_model": {"norm": "linf", "eps": 8.0, "low": 0.0, "high": 255.0},
        "steps": 100,
        "step_size": 0.255,
        "restarts": 5,
        "seed": 0,
    },
    "apgd_ce": {"attack": "APGD", "objective": "cross_entropy", "steps": 100, "seed": 0},
    "apgd_t": {"attack": "APGD", "objective": "targeted_dlr", "steps": 100, "seed": 0},
    "square": {"attack": "Square", "objective": "margin", "steps": 5000, "seed": 0},
    "segpgd": {"attack": "PGD", "objective": "segpgd", "steps": 100, "seed": 0},
}


def record() -> dict:
    return {
        "schema": 2,
        "name": "two <headed>",
        "dataset": DATASET,
        "architecture": "DeepLab",
        "eps": 8.0,
        "norm": "linf",
        "clean_acc": 75.0,
        "autoattack_acc": 33.3,
        "reported": None,
        "unreliable": False,
        "number_forward_passes": 700_000,
        "results": {DATASET: {"classification": {"accuracy": 75.0, "num_images": IMAGES}}},
        "attacks": ATTACKS,
        "warnings": {DATASET: ["careful with <this>"]},
        "checkpoint": {"path": "output/x/model_best.pth", "sha256": "cd" * 32},
        "config_sha256": "ef" * 32,
        "config": "MODEL:\n  WEIGHTS: x\n",
        "versions": {"part_robust": "0.1", "torch": "2.0"},
        "evaluation": {DATASET: evaluation()},
    }


def first_schema() -> dict:
    """As evaluations without tiers write it."""
    full = record()
    keys = ("attacks", "warnings", "checkpoint", "config_sha256", "config", "versions")
    results = {
        "classification": {
            "accuracy": 75.0,
            "mean_class_accuracy": 74.0,
            "accuracy-<b>lamp</b>": 70.0,
            "num_images": 500,
        },
        "part_seg": {"mIoU": 60.0, "pixel_accuracy": 80.0, "IoU-head": 55.0, "num_images": 490},
        "classification_pgd100x5": {
            "accuracy": 41.0,
            "mean_class_accuracy": 40.0,
            "accuracy-<b>lamp</b>": 30.0,
            "num_images": 500,
        },
        "part_seg_pgd100x5": {"mIoU": 50.0, "pixel_accuracy": 70.0, "IoU-head": 44.0, "num_images": 490},
    }
    return (
        {"schema": 1, "results": {DATASET: results}}
        | {key: full[key] for key in keys}
        | {"attacks": {"pgd100x5": ATTACKS["pgd100x5"]}}
    )


def flags() -> dict[str, np.ndarray]:
    order = np.arange(IMAGES)
    return {
        "image_id": order,
        "clean_correct": order < CLEAN,
        "robust_standard": order < STANDARD,
        "robust_thesis": order < THESIS,
        "fooled_apgd_ce": (order >= 430) & (order < CLEAN),
        "fooled_square": (order >= STANDARD) & (order < 401),
        "fooled_pgd100x5": order >= THESIS,
    }


def pictures(count: int = 4, side: int = 24) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    clean = generator.integers(0, 256, (count, 3, side, side)).astype(np.uint8)
    parts = np.full((count, side, side), 2, dtype=np.int16)
    parts[:, 5:12, 5:15], parts[:, 12:20, 8:12] = 0, 1
    missing = np.full_like(parts, -1)
    return {
        "image_id": np.arange(count),
        "label": np.arange(count) % 3,
        "clean": clean,
        "attacked": np.clip(clean + generator.uniform(-8, 8, clean.shape), 0, 255).astype(np.float32),
        "true_parts": parts,
        "parts_before": np.where(np.arange(count)[:, None, None] == 1, missing, parts),
        "parts_after": np.where(np.arange(count)[:, None, None] == 1, missing, parts[:, ::-1]),
        "top3_labels_before": np.tile([0, 1, 2], (count, 1)),
        "top3_labels_after": np.tile([1, 2, -1], (count, 1)),
        "top3_probabilities_before": np.tile([0.8, 0.15, 0.05], (count, 1)),
        "top3_probabilities_after": np.tile([0.6, 0.4, 0.0], (count, 1)),
        "kind": np.array(["worst", "median", "robust", "robust"])[:count],
    }


def comparable(folder: Path, name: str = "robustness.json") -> dict:
    """Reads the record of a real evaluation, without what differs between two runs of the same."""
    record = json.loads((folder / name).read_text())
    record = {key: record[key] for key in ("results", "warnings", "attacks", "evaluation")}
    for evaluation in record["evaluation"].values():
        evaluation.pop("seconds"), evaluation.pop("rescored", None)
        evaluation.get("smoothing", {}).pop("seconds", None)
        for tier in evaluation["tiers"].values():
            for attack in tier["attacks"]:
                attack.pop("seconds")
    return record
