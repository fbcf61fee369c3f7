"""From a record to sections; what the record lacks is left out.

`E` is one data set's entry of the record's `evaluation` (docs/report.md).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from part_robust.evaluation.checks import CheckResult, from_record, reportable, summary, verdict
from part_robust.evaluation.checks.record import class_tiers
from part_robust.evaluation.html_report import plots
from part_robust.evaluation.html_report.blocks import (
    MISSING,
    Block,
    Code,
    Figure,
    Report,
    Section,
    Table,
    Text,
    Tile,
    Tiles,
    interval,
    number,
)
from part_robust.evaluation.html_report.contact_sheet import contact_sheet
from part_robust.evaluation.html_report.schema import evaluations, headline_result, load_arrays, threat_words

# With more classes a list of the most frequent changes says more than a matrix.
MATRIX_CLASSES = 15
CHANGES = 20


def build_report(record: Mapping[str, Any], folder: Path) -> Report:
    """
    Args:
        record: of any schema.
        folder: where its npz files are.
    """
    parts = []
    for dataset, E in evaluations(record).items():
        warnings = (record.get("warnings") or {}).get(dataset) or []
        sections = [
            _verdict(E, warnings),
            _checks(E),
            _tiers(E),
            _matrix(E),
            _curves(E),
            _breakdown(E),
            _confusion(E),
            _pictures(E, folder),
            _facts(E),
        ]
        parts.append((dataset, [section for section in sections if section is not None]))
    parts.append(("", [section for section in (_attacks(record), _provenance(record)) if section is not None]))
    name = record.get("name") or folder.resolve().name
    words = [str(record[key]) for key in ("architecture", "venue") if record.get(key)]
    return Report(f"Robustness of {name}", ", ".join(words), parts)


def headline(E: Mapping[str, Any]) -> str:
    """The numbers in words."""
    name, result = headline_result(E)
    clean, words = E.get("clean"), []
    if result:
        threat = threat_words(E)
        what = "of the classes" if name in class_tiers(E) or E.get("headline_result") else "of the pixels"
        words.append(
            f"{name}: {result['accuracy']:.1f} % {interval(result.get('interval'))} {what} right under attack"
            + (f" ({threat})" if threat else "")
        )
    if clean:
        words.append(f"clean {clean['accuracy']:.1f} % {interval(clean.get('interval'))}")
    words.append(f"{E.get('num_images') or 0} images")
    return ", ".join(words)


def verdict_of(E: Mapping[str, Any], checks: Sequence[CheckResult]) -> str:
    """The record's own sentence, or one made from its numbers; the checks overrule both."""
    if not reportable(checks):
        return verdict(checks, "")
    return E.get("verdict") or verdict(checks, headline(E))


def _verdict(E: Mapping[str, Any], warnings: Sequence[str]) -> Section:
    checks = from_record(E.get("checks") or [])
    fine = reportable(checks) and E.get("reportable", True)
    findings = any(check.status == "fail" for check in checks) or not checks
    tone = ("warning" if findings else "good") if fine else "bad"
    blocks: list[Block] = [Text(verdict_of(E, checks), tone)]
    blocks += [Text(f"Warning: {sentence}", "warning") for sentence in warnings]
    tiles = []
    clean = E.get("clean")
    if clean:
        tiles.append(Tile("clean", f"{clean['accuracy']:.1f} %", _count(clean, E)))
    if E.get("headline_result"):
        tiles.append(Tile(E["headline"], f"{E['headline_result']['accuracy']:.1f} %", _count(E["headline_result"], E)))
    for tier, values in (E.get("tiers") or {}).items():
        if (result := values.get("robust")) and result.get("accuracy") is not None:
            of_class = tier in class_tiers(E)
            detail = _count(result, E) if of_class else f"pixels right {interval(result.get('interval'))}"
            tiles.append(Tile(tier, f"{result['accuracy']:.1f} %", detail))
    if (worst := E.get("worst_case")) and worst.get("accuracy") is not None:
        tiles.append(Tile("worst case over all", f"{worst['accuracy']:.1f} %", _count(worst, E)))
    tiles.append(Tile("checks", _verdict_word(checks), summary(checks)))
    return Section("Verdict", [*blocks, Tiles(tiles)])


def _count(result: Mapping[str, Any], E: Mapping[str, Any]) -> str:
    of_images = result["correct"] <= (E.get("num_images") or 0)
    count = f"{result['correct']:,} of {E['num_images']:,}, " if of_images and E.get("num_images") else ""
    # The two ends of an interval stay on one line.
    return f"{count}{interval(result.get('interval'))}".replace(", ", ",\u00a0").replace(",\u00a0[", ", [")


def _verdict_word(checks: Sequence[CheckResult]) -> str:
    if not checks:
        return "none ran"
    if not reportable(checks):
        return "errors"
    return "warnings" if any(check.status == "fail" for check in checks) else "pass"


def _checks(E: Mapping[str, Any]) -> Section | None:
    checks = from_record(E.get("checks") or [])
    if not checks:
        return None
    order = {"fail": 0, "pass": 1, "skipped": 2}
    checks = sorted(checks, key=lambda c: (order.get(c.status, 3), c.level != "error", int(c.id[1:] or 0)))
    tones = [{"fail": "bad" if c.level == "error" else "warning", "pass": "good"}.get(c.status, "") for c in checks]
    rows = [
        [c.id, c.name, c.level if c.status == "fail" else c.status, c.sentence, c.remedy or MISSING] for c in checks
    ]
    return Section("Checks", [Table(summary(checks), ["", "check", "result", "finding", "remedy"], rows, tones=tones)])


def _tiers(E: Mapping[str, Any]) -> Section | None:
    blocks: list[Block] = []
    for tier, values in (E.get("tiers") or {}).items():
        rows = [
            [
                row["name"],
                number(row.get("attacked_images")),
                number(row.get("accuracy_alone")),
                number(row.get("accuracy_after")),
                number(row.get("forwards")),
                number(row.get("backwards")),
                number(row.get("seconds"), 0),
            ]
            for row in values.get("attacks") or ()
        ]
        if rows:
            columns = ["attack", "images attacked", "% alone", "% after it", "forward", "backward", "seconds"]
            caption = f"{tier}: {values.get('objective') or ''}, attacks in order; passes count images".replace(
                ": ,", ":"
            )
            blocks.append(Table(caption, columns, rows))
    return Section("Attacks in order", blocks) if blocks else None


def _matrix(E: Mapping[str, Any]) -> Section | None:
    rows = E.get("attack_matrix") or []
    metrics = {
        "accuracy": "class accuracy %",
        "pixel_accuracy": "pixel accuracy %",
        "mIoU": "mIoU %",
        "AP": "AP",
        "AP50": "AP50",
    }
    metrics = {key: name for key, name in metrics.items() if any(row.get(key) is not None for row in rows)}
    if not rows or not metrics:
        return None
    cells = [[row["attack"], row.get("head") or MISSING, *(number(row.get(key), 2) for key in metrics)] for row in rows]
    caption = "What each attack leaves of each metric; a metric is robust only under attacks on its own head"
    return Section("Attack matrix", [Table(caption, ["attack", "aimed at", *metrics.values()], cells)])


def _curves(E: Mapping[str, Any]) -> Section | None:
    blocks: list[Block] = []
    if curve := sorted(E.get("eps_curve") or [], key=lambda point: point["eps"]):
        ends = f"from {curve[0]['accuracy']:.1f} % at eps {curve[0]['eps']:g} to {curve[-1]['accuracy']:.1f} %"
        blocks.append(
            Figure(
                plots.eps_curve(curve, E.get("eps")),
                "Accuracy against the radius",
                f"Falls {ends} at eps {curve[-1]['eps']:g}; the band is the 95 % interval, the dotted line the threat "
                "model.",
            )
        )
    if convergence := {name: values for name, values in (E.get("convergence") or {}).items() if len(values)}:
        blocks.append(
            Figure(
                plots.convergence(convergence),
                "Convergence",
                f"Mean loss along the steps of {', '.join(convergence)}: flat at the right end means converged.",
            )
        )
    if found := E.get("fab_distances"):
        middle = sorted(found)[len(found) // 2]
        blocks.append(
            Figure(
                plots.distances(found, E.get("eps")),
                "Distance to the nearest adversarial image",
                f"Of {len(found)} images; half lie within {middle:.1f} levels. The dotted line is the threat model.",
            )
        )
    if curve:
        rows = [[f"{point['eps']:g}", number(point["accuracy"]), interval(point.get("interval"))] for point in curve]
        blocks.append(Table("Accuracy against the radius", ["eps", "right %", "95 % interval"], rows))
    return Section("Curves", blocks, wide=True) if blocks else None


def _breakdown(E: Mapping[str, Any]) -> Section | None:
    blocks: list[Block] = []
    attack = headline_result(E)[0] or "attacked"
    if classes := E.get("per_class"):
        columns = ["class", "images", "clean %", f"{attack} %"]
        blocks.append(_scores("Class accuracy by class", columns, classes, ("images", "clean", "robust")))
    if parts := E.get("per_part"):
        measure = "IoU" if E.get("part_measure") == "IoU" else "share of its pixels that is found"
        columns = ["part", "pixels", "clean %", "attacked %"]
        blocks.append(_scores(f"Parts: {measure}", columns, parts, ("pixels", "clean", "attacked")))
    if sizes := E.get("by_size"):
        rows = [
            [
                f"{100 * row['low']:.1f} to {100 * row['high']:.1f} %",
                *(number(row.get(key)) for key in ("images", "clean", "robust")),
            ]
            for row in sizes
        ]
        columns = ["share of the image", "images", "clean %", f"{attack} %"]
        blocks.append(Table("Class accuracy by size of the object", columns, rows))
    return Section("Where it holds", blocks, wide=True) if blocks else None


def _scores(caption: str, columns: list[str], entries: Sequence[Mapping[str, Any]], keys: tuple[str, ...]) -> Table:
    """A table of entries by name; columns that nobody filled are left out."""
    kept = [
        (name, key) for name, key in zip(columns[1:], keys, strict=True) if any(e.get(key) is not None for e in entries)
    ]
    rows = [[entry["name"], *(number(entry.get(key)) for _, key in kept)] for entry in entries]
    return Table(caption, [columns[0], *(name for name, _ in kept)], rows)


def _confusion(E: Mapping[str, Any]) -> Section | None:
    counts = E.get("clean_to_attacked")
    if not counts:
        return None
    classes = E.get("classes") or [f"class {index}" for index in range(len(counts))]
    title = "What classes turn into"
    if len(counts) <= MATRIX_CLASSES:
        totals = [max(sum(row), 1) for row in counts]
        shades = [[0.0, *(count / total for count in row)] for row, total in zip(counts, totals, strict=True)]
        rows = [[name, *(number(count) for count in row)] for name, row in zip(classes, counts, strict=True)]
        caption = "Images right without an attack, by their class (rows) and the class predicted under attack (columns)"
        return Section(title, [Table(caption, ["clean", *classes], rows, shades=shades)])
    changes = [
        (count, row, column)
        for row, values in enumerate(counts)
        for column, count in enumerate(values)
        if row != column and count
    ]
    changes.sort(key=lambda change: (-change[0], change[1], change[2]))
    rows = [
        [classes[row], classes[column], number(count), number(100.0 * count / max(sum(counts[row]), 1))]
        for count, row, column in changes[:CHANGES]
    ]
    columns = ["clean", "attacked", "images", "% of the class"]
    return Section(title, [Table(f"The {len(rows)} most frequent changes", columns, rows)]) if rows else None


def _pictures(E: Mapping[str, Any], folder: Path) -> Section | None:
    arrays = load_arrays(folder, (E.get("files") or {}).get("pictures"))
    sheet = contact_sheet(arrays, E.get("classes") or [], E.get("parts") or [], E.get("eps")) if arrays else None
    return Section("Contact sheet", [sheet]) if sheet else None


def _facts(E: Mapping[str, Any]) -> Section | None:
    files = E.get("files") or {}
    facts = {
        "threat model": threat_words(E),
        "images": number(E.get("num_images")) if E.get("num_images") else "",
        "image list, SHA-256": E.get("image_list_sha256"),
        "seeds": _words(E.get("seeds")),
        "forward passes, images": number(E.get("forwards")) if E.get("forwards") else "",
        "backward passes, images": number(E.get("backwards")) if E.get("backwards") else "",
        "time": f"{E['seconds']:,.0f} s" if E.get("seconds") else "",
        "device": E.get("device"),
        "flags of every image": files.get("flags"),
        "adversarial images": files.get("adversarials"),
    }
    return _fact_section("This evaluation", "What was evaluated, and what it cost", facts)


def _provenance(record: Mapping[str, Any]) -> Section | None:
    checkpoint = record.get("checkpoint") or {}
    facts = {
        "checkpoint": checkpoint.get("path"),
        "checkpoint, SHA-256": checkpoint.get("sha256"),
        "config, SHA-256": record.get("config_sha256"),
        "versions": _words(record.get("versions")),
        "schema of the record": str(record.get("schema", "")),
    }
    section = _fact_section("Provenance", "What the numbers were made with", facts)
    if section and record.get("config"):
        section = Section(section.title, [*section.blocks, Code("The complete config", str(record["config"]))])
    return section


def _fact_section(title: str, caption: str, facts: Mapping[str, Any]) -> Section | None:
    rows = [[name, str(value)] for name, value in facts.items() if value]
    return Section(title, [Table(caption, ["what", "value"], rows)]) if rows else None


def _attacks(record: Mapping[str, Any]) -> Section | None:
    rows = []
    for name, values in (record.get("attacks") or {}).items():
        threat = values.get("threat_model") or {}
        rest = {key: value for key, value in values.items() if key not in ("attack", "objective", "threat_model")}
        words = f"{threat['norm']} {threat['eps']:g}/255" if threat else MISSING
        rows.append([name, str(values.get("attack", "")), str(values.get("objective", "")), words, _words(rest)])
    columns = ["name", "attack", "maximises", "threat model", "everything else"]
    return (
        Section("How the attacks were set", [Table("Everything needed to repeat them", columns, rows)])
        if rows
        else None
    )


def _words(values: Mapping[str, Any] | None) -> str:
    """Such as "steps 100, seed 0"."""
    return ", ".join(
        f"{key} {value if isinstance(value, (str, int, float)) else json.dumps(value)}"
        for key, value in (values or {}).items()
    )
