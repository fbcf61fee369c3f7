"""The catalogue of checks and their results: documented, summed up, merged, written and read."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

from part_robust.attacks import EotView, build_attack
from part_robust.config import get_part_robust_cfg
from part_robust.evaluation.checks import (
    CATALOGUE,
    CheckSettings,
    failed,
    from_record,
    merge_checks,
    passed,
    reportable,
    skipped,
    summary,
    verdict,
)
from part_robust.evaluation.checks.run import AUDIT

OCCASIONS = ("always", "audit", "record")


def test_every_check_is_documented():
    """The table has the catalogue's checks, with their level and the occasions on which they run."""
    page = Path(__file__).resolve().parents[2] / "docs" / "checks.md"
    rows = [[cell.strip() for cell in line.split("|")] for line in page.read_text().splitlines() if line[:3] == "| C"]
    documented = {
        id: (level.split(";")[0], {when for when in OCCASIONS if when in re.findall(r"\w+", occasions)})
        for _, id, _, _, level, occasions, *_ in rows
    }
    assert documented == {
        id: (check.level, {when for when in OCCASIONS if getattr(check, when)}) for id, check in CATALOGUE.items()
    }


def test_catalogue():
    assert list(CATALOGUE) == [f"C{number}" for number in range(1, 23)]
    for id, check in CATALOGUE.items():
        assert check.id == id and check.title and check.level in ("error", "warning") and check.remedy
        assert check.always or check.audit or check.record
    only_audit = [id for id, check in CATALOGUE.items() if check.audit and not check.always]
    assert sorted(AUDIT) == sorted(only_audit), "the audit runs what the catalogue says"


def test_import_that_earlier_records_recommend():
    assert importlib.import_module("part_robust.attacks.checks").EotView is EotView


def test_verdict_and_summary():
    fine = [passed("C1", "as before"), passed("C2", "same"), skipped("C13", "none given")]
    assert verdict(fine, "34 % robust") == "34 % robust (3 checks: 2 pass, 1 skipped)"
    warned = [*fine, failed("C10", "not yet")]
    assert verdict(warned, "34 % robust").endswith("(4 checks: 2 pass, 1 warning (C10), 1 skipped)")
    assert reportable(warned)
    wrong = [*warned, failed("C6", "cut gradient", 0.43)]
    assert not reportable(wrong)
    sentence = verdict(wrong, "34 % robust")
    assert sentence.startswith("not reportable: C6 cut gradient: attack with ATTACK.FULL_GRADIENT True")
    assert "34 %" not in sentence and "1 error (C6)" in sentence
    assert summary([]) == "no checks ran"
    assert reportable([failed("C2", "random", level="warning")])


def test_merging():
    merged = merge_checks(
        [passed("C10", "a"), skipped("C13", "b")], [failed("C2", "c"), passed("C13", "d")], [failed("C2", "e")]
    )
    assert [(r.id, r.status, r.sentence) for r in merged] == [
        ("C2", "fail", "c; e"),
        ("C10", "pass", "a"),
        ("C13", "pass", "d"),
    ]
    weak = merge_checks([failed("C2", "weak", level="warning")], [failed("C2", "strong")])
    assert weak[0].level == "error"


def test_record_round_trip():
    results = [failed("C6", "cut", 0.5), passed("C1", "fine")]
    assert from_record([result.describe() for result in results]) == results
    assert from_record([{"id": "C1", "status": "pass", "future": 1}])[0].sentence == ""


def test_settings_come_from_the_config():
    assert CheckSettings.from_config({"IMAGES": 5, "OTHER": 1}) == CheckSettings(images=5)
    assert CheckSettings.from_config(get_part_robust_cfg().TEST.CHECKS) == CheckSettings()
    specs = get_part_robust_cfg().ATTACK.SPECS
    assert {name: build_attack(specs[name]).query_factor for name in ("apgd_open", "apgd_margin")} == {
        "apgd_open": 4,
        "apgd_margin": 1,
    }
