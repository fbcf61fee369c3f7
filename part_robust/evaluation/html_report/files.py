"""Reports on disk."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from part_robust.evaluation.html_report.blocks import Report
from part_robust.evaluation.html_report.leaderboard import build_leaderboard
from part_robust.evaluation.html_report.markdown import render_markdown
from part_robust.evaluation.html_report.page import render_html
from part_robust.evaluation.html_report.schema import load_record
from part_robust.evaluation.html_report.sections import build_report


def write_report(record_path: str | Path) -> tuple[Path, Path]:
    """Writes `report.md` and `report.html` beside a record; returns their paths.

    Raises:
        ValueError: the file is no record.
    """
    path = Path(record_path)
    report = build_report(load_record(path), path.parent)
    stem = "report" if path.stem == "robustness" else f"report_{path.stem}"
    return _write(report, path.parent, stem)


def write_leaderboard(record_paths: Sequence[str | Path], folder: str | Path) -> tuple[Path, Path]:
    """Writes `leaderboard.md` and `leaderboard.html` of several records into a folder.

    Raises:
        ValueError: a file is no record.
    """
    records = [(Path(path), load_record(Path(path))) for path in record_paths]
    return _write(build_leaderboard(records), Path(folder), "leaderboard")


def _write(report: Report, folder: Path, stem: str) -> tuple[Path, Path]:
    """Atomic: a killed process leaves the old file or the new one."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for ending, text in ((".md", render_markdown(report)), (".html", render_html(report))):
        path = folder / f"{stem}{ending}"
        temporary = path.with_name(path.name + ".tmp")
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
        paths.append(path)
    return paths[0], paths[1]
