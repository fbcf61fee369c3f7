"""The model zoo: the trained models, the numbers in their records, and the commands that evaluate them again."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from part_robust.config import config_values, get_part_robust_cfg, zoo_configs
from part_robust.evaluation.checks import from_record, summary
from part_robust.evaluation.report.content import MISSING, Code, Page, Part, Section, Text, make_table
from part_robust.evaluation.report.leaderboard import Entry, accuracy, entry_of
from part_robust.evaluation.report.records import evaluations

# Keys that differ between every run's config and its leaf.
OF_EVERY_RUN = (
    "OUTPUT_DIR", "MODEL.WEIGHTS", "MODEL.DEVICE", "MODEL.PART_CLASSIFIER.NUM_CLASSES",
    "MODEL.PART_CLASSIFIER.NUM_PARTS", "DATALOADER.NUM_WORKERS",
)  # fmt: skip
NOTE = (
    "Robust is the lowest accuracy under any attack or tier of the record; the record, robustness.json in the model's "
    "folder, has all of them with their settings. Intervals are Wilson's. It is an upper bound: a stronger attack may "
    "find a lower one. Pixels are the pixel accuracy of the parts, AP50 is of their boxes, under the same attack. The "
    "sum is the beginning of the SHA-256 of the weights that were evaluated. Configs are shown with the keys that a "
    "command line had changed."
)


def build_zoo(records: Sequence[tuple[Path, Mapping[str, Any]]], made_by: Sequence[str] = ()) -> Page:
    """Return the page of several records.

    Args:
        records: paths and what is in them.
        made_by: commands that made the models and the page.
    """
    found: dict[str, list[tuple[Entry, dict[str, Any]]]] = {}
    left_out, commands = [], []
    for path, record in records:
        entries = {name: (entry_of(path, record, values), values) for name, values in evaluations(record).items()}
        for dataset, (entry, values) in entries.items():
            if entry is not None:
                found.setdefault(dataset, []).append((entry, _row(path, record, entry, values)))
        if any(entry is not None for entry, _ in entries.values()):
            commands.append(_command(path, record))
        else:
            left_out.append(path.resolve().parent.name)
    models = [
        Section(dataset, tables=[make_table("The most robust first", [row for _, row in sorted(rows, key=_order)])])
        for dataset, rows in sorted(found.items())
    ]
    texts = [Text(NOTE)]
    if left_out:
        texts.append(Text(f"Without a class head, and therefore not here: {', '.join(left_out)}."))
    made = Code("", "\n".join(made_by)) if made_by else None
    again = Code("Commands", "\n".join(commands)) if commands else None
    sections = [
        Section("How to read it", texts=texts),
        Section("How these models and this page were made", code=made),
        *models,
        Section("To evaluate again", code=again),
    ]
    return Page("Model zoo", f"{len(records)} records", [Part("", sections)])


def _order(item: tuple[Entry, dict[str, Any]]) -> tuple:
    """Return the sort key: the most robust under its strongest attack first, unreliable ones last."""
    entry, _ = item
    return bool(entry.problem), -(entry.lowest["accuracy"] if entry.lowest else -1.0), entry.model


def _row(path: Path, record: Mapping[str, Any], entry: Entry, values: Mapping[str, Any]) -> dict[str, Any]:
    # An error-level finding makes the robust numbers worthless, so they are not printed.
    robust = None if entry.problem else entry.lowest
    matrix = {row["attack"]: row for row in values.get("attack_matrix") or ()}
    clean, attacked = matrix.get("clean", {}), matrix.get(entry.lowest_name, {}) if robust else {}
    return {
        "model": entry.model,
        "parameters": entry.parameters,
        "pre-training": entry.pretraining,
        "images": entry.images,
        "clean %": accuracy(entry.clean),
        "robust %": accuracy(robust),
        "95 % interval": (robust or {}).get("interval"),
        "under": entry.lowest_name,
        "threat model": entry.threat,
        "pixels, clean %": clean.get("pixel_accuracy"),
        "pixels, attacked %": attacked.get("pixel_accuracy"),
        "AP50, clean": clean.get("AP50"),
        "AP50, attacked": attacked.get("AP50"),
        "checks": f"unreliable: {entry.problem}" if entry.problem else summary(from_record(values.get("checks") or [])),
        "weights, sha256": str((record.get("checkpoint") or {}).get("sha256") or MISSING)[:12],
        "config": _config_name(path, record),
    }


def _config_name(path: Path, record: Mapping[str, Any]) -> str:
    """Return the leaf config that OUTPUT_DIR is named after, with the keys that the run changed.

    Where there is no such leaf it is the run's own complete config.
    """
    values = config_values(record.get("config") or "")
    leaf = _leaf(Path(str(values.get("OUTPUT_DIR", ""))))
    if leaf is None:
        return _near(path.parent / "config.yaml")
    plain = config_values(get_part_robust_cfg(leaf).dump())
    changed = sorted(key for key in plain.keys() & values.keys() - set(OF_EVERY_RUN) if plain[key] != values[key])
    return " ".join([leaf.as_posix(), *(f"{key} {values[key]}" for key in changed)])


def _leaf(output: Path) -> Path | None:
    """Return configs/part_shapes/resnet50.yaml for the output folders part_shapes{,_small}/resnet50."""
    found = [
        path
        for path in (Path("configs", name) for name in zoo_configs())
        if path.stem == output.name and len(path.parts) == 3 and output.parent.name.startswith(path.parent.name)
    ]
    return max(found, key=lambda path: len(path.parent.name), default=None)


def _command(path: Path, record: Mapping[str, Any]) -> str:
    """Return the command that evaluates again, with the run's complete config, which has what its command line set."""
    weights = (record.get("checkpoint") or {}).get("path") or ""
    return (
        f"python tools/train_net.py --config-file {_near(path.parent / 'config.yaml')} --eval-only "
        f"MODEL.WEIGHTS {_near(Path(weights)) if weights else repr('')}"
    )


def _near(path: Path) -> str:
    """Return the path from the working directory, or the name alone if it is outside, to show no machine's folders."""
    relative = os.path.relpath(path)
    return path.name if relative.startswith("..") else Path(relative).as_posix()
