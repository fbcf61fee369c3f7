"""Reports on disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from part_robust.evaluation.html_report.blocks import Report
from part_robust.evaluation.html_report.leaderboard import build_leaderboard
from part_robust.evaluation.html_report.markdown import render_markdown
from part_robust.evaluation.html_report.page import render_html
from part_robust.evaluation.html_report.schema import load_record
from part_robust.evaluation.html_report.sections import build_report
from part_robust.evaluation.html_report.zoo import build_zoo
from part_robust.utils.files import write_text


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


def write_zoo(record_paths: Sequence[str | Path], output: str | Path, made_by: Sequence[str] = ()) -> Path:
    """Writes the model zoo of several records as one Markdown page; returns its path.

    Args:
        record_paths: of robustness.json files.
        output: the page.
        made_by: commands that made the models and the page, which it shows.

    Raises:
        ValueError: a file is no record.
    """
    text = render_markdown(build_zoo([(Path(path), load_record(Path(path))) for path in record_paths], made_by))
    return write_text(output, text)


def _write(report: Report, folder: Path, stem: str) -> tuple[Path, Path]:
    markdown = write_text(folder / f"{stem}.md", render_markdown(report))
    return markdown, write_text(folder / f"{stem}.html", render_html(report))
