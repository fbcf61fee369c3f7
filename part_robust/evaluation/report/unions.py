"""Several threat models side by side in a report, and the images that are right under all of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from part_robust.evaluation.report.content import Section, Text, make_table
from part_robust.evaluation.report.records import threat_model_text


def union_section(entry: Mapping[str, Any]) -> Section:
    """Return a table for each set of attacks that ran under several threat models, an empty section without any.

    Args:
        entry: one data set's entry of the record's `evaluation`.
    """
    title, unions = "Several threat models", entry.get("unions") or {}
    if not unions:
        return Section(title)
    note = (
        "An image counts in the last row if the class is right under every threat model, each with all of its attacks. "
        "Broken by it alone: images that are right under all the others."
    )
    tables = [make_table(f"Class accuracy of {name}", _rows(name, union, entry)) for name, union in unions.items()]
    return Section(title, texts=[Text(note, "note")], tables=tables)


def _rows(name: str, union: Mapping[str, Any], entry: Mapping[str, Any]) -> list[dict[str, Any]]:
    tiers = entry.get("tiers") or {}
    rows = [
        _row(tier, threat_model_text(tiers.get(tier) or {}), (tiers.get(tier) or {}).get("robust"))
        | {"broken by it alone": (union.get("broken_by_one") or {}).get(tier)}
        for tier in union["tiers"]
    ]
    return [*rows, _row(name, "all of them", union["robust"]) | {"broken by it alone": None}]


def _row(name: str, threat: str, result: Mapping[str, Any] | None) -> dict[str, Any]:
    result = result or {}
    return {
        "attacks": name,
        "threat model": threat,
        "accuracy %": result.get("accuracy"),
        "95 % interval": result.get("interval"),
    }
