"""The model zoo: which trained models there are, what their records say of them, and the command that says it again."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from part_robust.attacks.checks import from_record, summary
from part_robust.evaluation.html_report.blocks import MISSING, Code, Report, Section, Table, Text, interval, number
from part_robust.evaluation.html_report.leaderboard import Entry, entry_of
from part_robust.evaluation.html_report.schema import evaluations

COLUMNS = (
    "model", "config", "parameters", "pre-training", "images", "clean %", "robust %", "95 % interval", "under",
    "threat model", "checks", "weights, sha256",
)  # fmt: skip


def build_zoo(records: Sequence[tuple[Path, Mapping[str, Any]]]) -> Report:
    """
    Args:
        records: paths and what is in them.
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
        "attack may leave less. The sum is the beginning of the SHA-256 of the weights that were evaluated."
    )
    blocks = [Text(note)]
    if left_out:
        blocks.append(Text(f"Without a class head, and therefore not here: {', '.join(left_out)}."))
    again = [Section("To evaluate again", [Code("Commands", "\n".join(commands))])] if commands else []
    return Report(
        "Model zoo", f"{len(records)} records", [("", [Section("How to read it", blocks), *sections, *again])]
    )


def _order(item: tuple[Entry, list[str]]) -> tuple:
    """Unreliable ones last, then by what is left under the strongest attack."""
    entry, _ = item
    return bool(entry.problem), -(entry.lowest["accuracy"] if entry.lowest else -1.0), entry.model


def _row(path: Path, record: Mapping[str, Any], entry: Entry, E: Mapping[str, Any]) -> list[str]:
    # What an error-level finding has made worthless is not printed.
    robust = None if entry.problem else entry.lowest
    return [
        entry.model,
        _config_name(path, record),
        number(entry.parameters),
        entry.pretraining or MISSING,
        number(entry.images),
        number(entry.clean["accuracy"] if entry.clean else None),
        number(robust["accuracy"] if robust else None),
        interval(robust.get("interval") if robust else None),
        entry.lowest_name or MISSING,
        entry.threat or MISSING,
        f"unreliable: {entry.problem}" if entry.problem else summary(from_record(E.get("checks") or [])),
        str((record.get("checkpoint") or {}).get("sha256") or MISSING)[:12],
    ]


def _config_name(path: Path, record: Mapping[str, Any]) -> str:
    """The leaf config that OUTPUT_DIR is named after, where there is one; else the run's own complete config."""
    output = str((yaml.safe_load(record.get("config") or "") or {}).get("OUTPUT_DIR", ""))
    leaf = "/".join(["configs", *Path(output).parts[-2:]]) + ".yaml"
    return leaf if Path(leaf).is_file() else _near(path.parent / "config.yaml")


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
