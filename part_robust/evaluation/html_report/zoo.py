"""The model zoo: which trained models there are, what their records say of them, and the command that says it again."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from part_robust.config import config_values, get_part_robust_cfg
from part_robust.evaluation.checks import from_record, summary
from part_robust.evaluation.html_report.blocks import MISSING, Code, Report, Section, Table, Text, interval, number
from part_robust.evaluation.html_report.leaderboard import Entry, entry_of
from part_robust.evaluation.html_report.schema import evaluations

COLUMNS = (
    "model", "parameters", "pre-training", "images", "clean %", "robust %", "95 % interval", "under", "threat model",
    "pixels, clean %", "pixels, attacked %", "AP50, clean", "AP50, attacked", "checks", "weights, sha256", "config",
)  # fmt: skip
# What a run's config has that its leaf does not, whoever runs it.
OF_EVERY_RUN = (
    "OUTPUT_DIR", "MODEL.WEIGHTS", "MODEL.DEVICE", "MODEL.PART_CLASSIFIER.NUM_CLASSES",
    "MODEL.PART_CLASSIFIER.NUM_PARTS", "DATALOADER.NUM_WORKERS",
)  # fmt: skip


def build_zoo(records: Sequence[tuple[Path, Mapping[str, Any]]], made_by: Sequence[str] = ()) -> Report:
    """
    Args:
        records: paths and what is in them.
        made_by: commands that made the models and the page.
    """
    found: dict[str, list[tuple[Entry, list[str]]]] = {}
    left_out, commands = [], []
    for path, record in records:
        entries = {name: (entry_of(path, record, E), E) for name, E in evaluations(record).items()}
        for dataset, (entry, E) in entries.items():
            if entry is not None:
                found.setdefault(dataset, []).append((entry, _row(path, record, entry, E)))
        if any(entry is not None for entry, _ in entries.values()):
            commands.append(_command(path, record))
        else:
            left_out.append(path.resolve().parent.name)
    sections = [
        Section(dataset, [Table("The most robust first", COLUMNS, [row for _, row in sorted(rows, key=_order)])])
        for dataset, rows in sorted(found.items())
    ]
    note = (
        "Robust is the lowest accuracy that any attack or tier of the record has left; the record, robustness.json in "
        "the model's folder, has all of them with their settings. Intervals are Wilson's. An upper bound: a stronger "
        "attack may leave less. Pixels are the pixel accuracy of the parts, AP50 is of their boxes, under the same "
        "attack. The sum is the beginning of the SHA-256 of the weights that were evaluated. Configs are shown "
        "with the keys that a command line had changed."
    )
    blocks = [Text(note)]
    if left_out:
        blocks.append(Text(f"Without a class head, and therefore not here: {', '.join(left_out)}."))
    made = [Section("How these models and this page were made", [Code("", "\n".join(made_by))])] if made_by else []
    again = [Section("To evaluate again", [Code("Commands", "\n".join(commands))])] if commands else []
    return Report(
        "Model zoo", f"{len(records)} records", [("", [Section("How to read it", blocks), *made, *sections, *again])]
    )


def _order(item: tuple[Entry, list[str]]) -> tuple:
    """Unreliable ones last, then by what is left under the strongest attack."""
    entry, _ = item
    return bool(entry.problem), -(entry.lowest["accuracy"] if entry.lowest else -1.0), entry.model


def _row(path: Path, record: Mapping[str, Any], entry: Entry, E: Mapping[str, Any]) -> list[str]:
    # What an error-level finding has made worthless is not printed.
    robust = None if entry.problem else entry.lowest
    looks = {row["attack"]: row for row in E.get("attack_matrix") or ()}
    clean, attacked = looks.get("clean", {}), looks.get(entry.lowest_name, {}) if robust else {}
    return [
        entry.model,
        number(entry.parameters),
        entry.pretraining or MISSING,
        number(entry.images),
        number(entry.clean["accuracy"] if entry.clean else None),
        number(robust["accuracy"] if robust else None),
        interval(robust.get("interval") if robust else None),
        entry.lowest_name or MISSING,
        entry.threat or MISSING,
        *(number(look.get(metric)) for metric in ("pixel_accuracy", "AP50") for look in (clean, attacked)),
        f"unreliable: {entry.problem}" if entry.problem else summary(from_record(E.get("checks") or [])),
        str((record.get("checkpoint") or {}).get("sha256") or MISSING)[:12],
        _config_name(path, record),
    ]


def _config_name(path: Path, record: Mapping[str, Any]) -> str:
    """The leaf config that OUTPUT_DIR is named after, where there is one, and what the run changed in it; else the
    run's own complete config."""
    values = config_values(record.get("config") or "")
    leaf = _leaf(Path(str(values.get("OUTPUT_DIR", ""))))
    if leaf is None:
        return _near(path.parent / "config.yaml")
    plain = config_values(get_part_robust_cfg(leaf).dump())
    changed = sorted(key for key in plain.keys() & values.keys() - set(OF_EVERY_RUN) if plain[key] != values[key])
    return " ".join([leaf.as_posix(), *(f"{key} {values[key]}" for key in changed)])


def _leaf(output: Path) -> Path | None:
    """Of output/part_shapes/resnet50, and of output/part_shapes_small/resnet50, configs/part_shapes/resnet50.yaml."""
    found = [
        path
        for path in Path("configs").glob(f"*/{output.name}.yaml")
        if output.name and output.parent.name.startswith(path.parent.name)
    ]
    return max(found, key=lambda path: len(path.parent.name), default=None)


def _command(path: Path, record: Mapping[str, Any]) -> str:
    """With the run's complete config, which has the values that a command line had changed."""
    weights = (record.get("checkpoint") or {}).get("path") or ""
    return (
        f"python tools/train_net.py --config-file {_near(path.parent / 'config.yaml')} --eval-only "
        f"MODEL.WEIGHTS {_near(Path(weights)) if weights else repr('')}"
    )


def _near(path: Path) -> str:
    """From the working directory if it lies below; a page for others names no folder of this machine."""
    relative = os.path.relpath(path)
    return path.name if relative.startswith("..") else Path(relative).as_posix()
