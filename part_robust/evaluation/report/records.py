"""Records from disk, of every schema, in the form of the newest."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from part_robust.evaluation.checks import wilson
from part_robust.evaluation.checks.record import class_tiers
from part_robust.evaluation.record_schema import check_record
from part_robust.evaluation.report.content import to_text
from part_robust.utils.files import check_file, read_arrays

RECORD_NAME = "robustness.json"


def find_records(paths: list[str | Path]) -> list[Path]:
    """Return the records among files and folders; a folder means its own record, or else all below it.

    Raises:
        FileNotFoundError: a path does not exist, or has no record in it.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = [path / RECORD_NAME] if (path / RECORD_NAME).is_file() else sorted(path.rglob(RECORD_NAME))
            if not inside:
                raise FileNotFoundError(f"no {RECORD_NAME} in {path}: evaluate first (tools/train_net.py --eval-only)")
            found += inside
        elif path.exists():
            found.append(path)
        else:
            raise FileNotFoundError(f"{path} does not exist")
    return list(dict.fromkeys(found))


def load_record(path: Path) -> dict[str, Any]:
    """Read a record of any schema.

    Raises:
        ValueError: not a record; names the file and what is wrong.
    """
    check_file(path, "the record of an evaluation")
    try:
        record = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid json ({error}): was the evaluation cut off? Run it again") from error
    if not isinstance(record, dict) or not ("results" in record or "evaluation" in record):
        raise ValueError(f"{path} is not the record of an evaluation: it has neither 'results' nor 'evaluation'")
    check_record(record, path)
    # Bytes of a file's name that are not UTF-8 are surrogates in the record, which no page can show.
    return json.loads(json.dumps(record, ensure_ascii=False).encode(errors="replace"))


def load_arrays(folder: Path, name: str | None) -> dict[str, np.ndarray]:
    """Return the arrays of an npz file beside the record, none without the file."""
    if not name or not (folder / name).is_file():
        return {}
    return read_arrays(folder / name, "arrays of an evaluation")


def evaluations(record: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return one entry for each data set; those without (schema 1) are made from the plain results."""
    known = {name: dict(values) for name, values in (record.get("evaluation") or {}).items()}
    for name, results in (record.get("results") or {}).items():
        if name not in known and isinstance(results, Mapping):
            known[name] = _from_results(results, record.get("attacks") or {})
    return known


def _from_results(results: Mapping[str, Any], attacks: Mapping[str, Any]) -> dict[str, Any]:
    classes = results.get("classification") or {}
    images = int(classes.get("num_images") or (results.get("part_seg") or {}).get("num_images") or 0)
    entry: dict[str, Any] = {"num_images": images, "attack_matrix": []}
    if "accuracy" in classes:
        entry["clean"] = _share(classes["accuracy"], images)
    for name in ("", *attacks):
        suffix = f"_{name}" if name else ""
        tasks = [results.get(f"{task}{suffix}") or {} for task in ("classification", "part_seg", "part_box")]
        if not any(tasks):
            continue
        objective = attacks.get(name, {}).get("objective", "")
        row = {"attack": name or "clean", "head": _head(objective) if name else None}
        for task, metrics in zip(tasks, (("accuracy",), ("pixel_accuracy", "mIoU"), ("AP", "AP50")), strict=True):
            row |= {metric: task.get(metric) for metric in metrics}
        entry["attack_matrix"].append(row)
    # The attack that leaves the least is the one whose details are shown.
    attacked = [row for row in entry["attack_matrix"] if row["head"] == "class" and row["accuracy"] is not None]
    worst = min(attacked, key=lambda row: row["accuracy"])["attack"] if attacked else None
    suffix = f"_{worst}" if worst else ""
    after, parts = results.get(f"classification{suffix}") or {}, results.get("part_seg") or {}
    parts_after = results.get(f"part_seg{suffix}") or {}
    if worst:
        threat = attacks[worst].get("threat_model") or {}
        entry |= {"headline": worst, "eps": threat.get("eps"), "norm": threat.get("norm")}
        entry["headline_result"] = _share(after["accuracy"], images)
    entry["per_class"] = [
        {"name": key[len("accuracy-") :], "clean": value, "robust": after.get(key) if worst else None}
        for key, value in classes.items()
        if key.startswith("accuracy-")
    ]
    entry["part_measure"] = "IoU"
    entry["per_part"] = [
        {"name": key[len("IoU-") :], "clean": value, "attacked": parts_after.get(key) if worst else None}
        for key, value in parts.items()
        if key.startswith("IoU-")
    ]
    return entry


def _head(objective: str) -> str:
    if objective.startswith("joint"):
        return "joint"
    return "part" if objective.startswith(("pixel", "part", "seg", "cos", "mask", "js")) else "class"


def _share(accuracy: float, images: int) -> dict[str, Any]:
    correct = round(accuracy * images / 100)
    return {"correct": correct, "accuracy": accuracy, "interval": list(wilson(correct, images))}


def headline_result(entry: Mapping[str, Any]) -> tuple[str, Mapping[str, Any] | None]:
    """Return name and {correct, accuracy, interval} of a data set's most important number, "" and None without any.

    It is that of a class tier, or of a tier on parts where there is no other.
    """
    tiers = entry.get("tiers") or {}
    if entry.get("headline_result"):
        return entry["headline"], entry["headline_result"]
    for name in (entry.get("headline"), "standard", "screen", *class_tiers(entry), *tiers):
        if name in tiers and tiers[name].get("robust"):
            return str(name), tiers[name]["robust"]
    return "", None


def headline_sentence(entry: Mapping[str, Any]) -> str:
    """Return the most important numbers as text."""
    name, result = headline_result(entry)
    clean, words = entry.get("clean"), []
    if result:
        threat = threat_model_text(entry)
        of_class = name in class_tiers(entry) or entry.get("headline_result")
        words.append(
            f"{name}: {result['accuracy']:.1f} % {to_text(result.get('interval'))} "
            f"{'class' if of_class else 'pixel'} accuracy under attack" + (f" ({threat})" if threat else "")
        )
    if clean:
        words.append(f"clean {clean['accuracy']:.1f} % {to_text(clean.get('interval'))}")
    words.append(f"{entry.get('num_images') or 0} images")
    return ", ".join(words)


def threat_model_text(values: Mapping[str, Any]) -> str:
    """Return the threat model of an entry or of an attack, such as "linf 8/255"; "" without one."""
    if values.get("eps") is None:
        return ""
    return f"{values.get('norm') or 'linf'} {values['eps']:g}/255"
