"""From a record (robustness.json) to pages for people: report.md and report.html, a leaderboard, and the model zoo."""

from part_robust.evaluation.report.files import write_leaderboard, write_report, write_zoo
from part_robust.evaluation.report.records import evaluations, find_records, load_record

__all__ = [
    "evaluations",
    "find_records",
    "load_record",
    "write_leaderboard",
    "write_report",
    "write_zoo",
]
