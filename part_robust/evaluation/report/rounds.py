"""The report of rounds: how often a tier restarted, and the bound of one that sampled."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from part_robust.evaluation.report.content import Section, Text, make_table
from part_robust.evaluation.rounds_record import bound_text

Entry = Mapping[str, Any]


def rounds_section(entry: Entry) -> Section:
    """Return the section on rounds; an empty one of a record without any."""
    tiers = entry.get("tiers") or {}
    bounds = {name: values["bound"] for name, values in tiers.items() if values.get("bound")}
    texts = [
        Text(
            f"{name}: {tiers[name]['robust']['accuracy']:.1f} % hold, {bound_text(tiers[name])}. "
            f"{' and '.join(bound['attacks'])} ran on {bound['drawn']} of the {bound['stood']} images that the other "
            f"attacks left, drawn at random (seed {bound['order_seed']} of the order), and broke {bound['fell']}. "
            "This is not a result of AutoAttack, which runs every attack on all images."
        )
        for name, bound in bounds.items()
    ]
    rows = [
        {
            "tier": name,
            "restarts": values["restarts"]["number"],
            "images broken by each": ", ".join(map(str, values["restarts"]["broke"])),
            "stops below, points": values["restarts"]["gain"],
        }
        for name, values in tiers.items()
        if values.get("restarts")
    ]
    return Section("Restarts and samples", texts=texts, tables=[make_table("Restarts after the first pass", rows)])


def bound_cell(entry: Entry, tier: str | None) -> str:
    """Return what follows a tier's number in few words, ", at most 0.8 lower"; "" without a bound."""
    bound = ((entry.get("tiers") or {}).get(tier) or {}).get("bound")
    return f", at most {bound['points']:.1f} lower" if bound else ""
