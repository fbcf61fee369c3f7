"""From a record (robustness.json) to pages for people: report.md, report.html, and a leaderboard of many records."""

from part_robust.evaluation.html_report.files import write_leaderboard, write_report, write_zoo
from part_robust.evaluation.html_report.schema import evaluations, find_records, load_record
from part_robust.evaluation.html_report.sections import build_report, headline

__all__ = [
    "build_report",
    "evaluations",
    "find_records",
    "headline",
    "load_record",
    "write_leaderboard",
    "write_report",
    "write_zoo",
]
