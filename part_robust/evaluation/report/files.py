"""Writes pages to disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from part_robust.evaluation.report.content import Page
from part_robust.evaluation.report.leaderboard import build_leaderboard
from part_robust.evaluation.report.records import load_record
from part_robust.evaluation.report.render import render_html, render_markdown
from part_robust.evaluation.report.sections import build_report
from part_robust.evaluation.report.zoo import build_zoo
from part_robust.utils.files import write_text


def write_report(record_path: str | Path) -> tuple[Path, Path]:
    """Write `report.md` and `report.html` beside a record, and return their paths.

    Raises:
        ValueError: the file is not a record.
    """
    path = Path(record_path)
    page = build_report(load_record(path), path.parent)
    return _write(page, path.parent / ("report" if path.stem == "robustness" else f"report_{path.stem}"))


def write_leaderboard(record_paths: Sequence[str | Path], folder: str | Path) -> tuple[Path, Path]:
    """Write `leaderboard.md` and `leaderboard.html` of several records into a folder, and return their paths.

    Raises:
        ValueError: a file is not a record.
    """
    records = [(Path(path), load_record(Path(path))) for path in record_paths]
    return _write(build_leaderboard(records), Path(folder) / "leaderboard")


def write_zoo(record_paths: Sequence[str | Path], output: str | Path, made_by: Sequence[str] = ()) -> Path:
    """Write the model zoo of several records as one Markdown page, and return its path.

    Args:
        record_paths: of robustness.json files.
        output: the page.
        made_by: commands that made the models and the page, which it shows.

    Raises:
        ValueError: a file is not a record.
    """
    records = [(Path(path), load_record(Path(path))) for path in record_paths]
    return write_text(output, render_markdown(build_zoo(records, made_by)))


def _write(page: Page, stem: Path) -> tuple[Path, Path]:
    return (
        write_text(stem.with_name(f"{stem.name}.md"), render_markdown(page)),
        write_text(stem.with_name(f"{stem.name}.html"), render_html(page)),
    )
