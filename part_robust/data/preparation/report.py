"""Report of what a preparation found, used and left out: report.json for programs, report.md for people."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from part_robust.utils.files import write_text

MAX_EXAMPLES = 20
# Libraries whose version can change a byte of the output.
_LIBRARIES = ("numpy", "pillow", "opencv-python-headless", "pycocotools")


@dataclass
class PreparationCounts:
    """Things counted by reason, each with its first examples."""

    counts: Counter = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, reason: str, example: str) -> None:
        """Count an event, and keep the first examples of its reason."""
        self.counts[reason] += 1
        shown = self.examples.setdefault(reason, [])
        if len(shown) < MAX_EXAMPLES:
            shown.append(example)

    def as_dict(self) -> dict:
        """Return count and examples of every reason, for the report."""
        return {
            reason: {"count": self.counts[reason], "examples": self.examples[reason]} for reason in sorted(self.counts)
        }


@dataclass(frozen=True)
class Check:
    """One line of the validation table.

    Attributes:
        name: what was counted.
        expected: the published value(s); several when sources disagree, none when there is nothing to compare.
        found: the value of this data.
        exact: a difference is a failure, not only worth a look.
    """

    name: str
    expected: tuple
    found: Any
    exact: bool = False

    @property
    def status(self) -> str:
        """The status is "ok", "differs", "FAIL" where the number must be exact, or "-" where nothing is expected."""
        if not self.expected:
            return "-"
        if self.found in self.expected:
            return "ok"
        return "FAIL" if self.exact else "differs"

    def row(self) -> list[str]:
        """Return the cells of the check: name, expected, found, status."""
        return [self.name, " or ".join(map(_text, self.expected)) or "-", _text(self.found), self.status]


def _text(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int):
        return str(value)
    return f"{value:,}"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Markdown table whose columns line up when read as plain text too."""
    lines = [list(map(str, header)), *(list(map(str, row)) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    text = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"
            for line in lines]  # fmt: skip
    text.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(text)


def checks_table(checks: Iterable[Check]) -> str:
    """Return the checks as a table in Markdown."""
    return table(("check", "expected", "found", "status"), [check.row() for check in checks])


def scan_text(checks: Iterable[Check], tallies: Iterable[PreparationCounts], notes: Iterable[str]) -> str:
    """Return what a dry run prints: the table of checks, each reason with its count and first example, the notes."""
    lines = [checks_table(checks)]
    for tally in tallies:
        lines += [
            f"{reason}: {count}, first: {tally.examples[reason][0]}" for reason, count in sorted(tally.counts.items())
        ]
    return "\n".join([*lines, *notes])


def library_versions() -> dict[str, str]:
    """Return the versions of the libraries that the result depends on."""
    found = {}
    for library in _LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            found[library] = "unknown"
    return found


def write_report(
    folder: Path, report: Mapping[str, Any], checks: Sequence[Check], tallies: Mapping[str, PreparationCounts]
) -> None:
    """Writes `report.md`, then `report.json`, whose presence says that the preparation is complete.

    Args:
        folder: where to.
        report: json values to store as they are; `title`, `splits`, `per_class` and `notes` are also shown.
        checks: validation table.
        tallies: counts by their heading.
    """
    data = dict(report)
    data["checks"] = [
        {"name": c.name, "expected": list(c.expected), "found": c.found, "status": c.status} for c in checks
    ]
    data["counted"] = {heading: tally.as_dict() for heading, tally in tallies.items()}
    write_text(folder / "report.md", _markdown(report, checks, tallies))
    write_text(folder / "report.json", json.dumps(data, sort_keys=True, indent=1) + "\n")


def _markdown(report: Mapping[str, Any], checks: Sequence[Check], tallies: Mapping[str, PreparationCounts]) -> str:
    parts = [f"# {report['title']}"]
    if checks:
        parts.append("## Counts\n\n" + checks_table(checks))
    splits = report.get("splits", {})
    if splits:
        keys = sorted(
            {key for values in splits.values() for key in values if not isinstance(values[key], (list, dict))}
        )
        parts.append(
            "## Splits\n\n"
            + table(("split", *keys), [[s, *(_text(v.get(k, 0)) for k in keys)] for s, v in splits.items()])
        )
    notes = report.get("notes", ())
    if notes:
        parts.append("## Notes\n\n" + "\n".join(f"- {note}" for note in notes))
    for heading, tally in tallies.items():
        lines = [
            f"- **{reason}**: {tally.counts[reason]:,}, first: "
            + "; ".join(f"`{e}`" for e in tally.examples[reason][:5])
            for reason in sorted(tally.counts)
        ]
        parts.append(f"## {heading}\n\n" + ("\n".join(lines) or "nothing"))
    per_class = report.get("per_class", {})
    if per_class:
        names = sorted({name for counts in per_class.values() for name in counts})
        rows = [[name, *(_text(counts.get(name, 0)) for counts in per_class.values())] for name in names]
        parts.append("## Images per class\n\n" + table(("class", *per_class), rows))
    return "\n\n".join(parts) + "\n"
