"""The report of one record: its numbers as sections; what the record lacks is left out.

`entry` is one data set's entry of the record's `evaluation` (docs/report.md).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from part_robust.evaluation.checks import CheckResult, from_record, reportable, summary, verdict
from part_robust.evaluation.report import plots
from part_robust.evaluation.report.certified import certified_section
from part_robust.evaluation.report.content import (
    Cell,
    Code,
    Figure,
    Page,
    Part,
    Section,
    Table,
    Text,
    Tile,
    make_table,
    select,
    to_text,
)
from part_robust.evaluation.report.examples import example_section
from part_robust.evaluation.report.local import local_examples, local_section
from part_robust.evaluation.report.records import (
    evaluations,
    headline_result,
    headline_sentence,
    load_arrays,
    threat_model_text,
)
from part_robust.evaluation.report.rounds import bound_cell, rounds_section
from part_robust.evaluation.report.unions import union_section

Entry = Mapping[str, Any]

# With more classes a list of the most frequent changes says more than a matrix.
MATRIX_CLASSES = 15
CHANGES = 20

TIER_COLUMNS = {
    "attack": "name",
    "images attacked": "attacked_images",
    "% alone": "accuracy_alone",
    "% after it": "accuracy_after",
    "forward": "forwards",
    "backward": "backwards",
    "seconds": "seconds",
}
MATRIX_COLUMNS = {
    "attack": "attack",
    "attacked head": "head",
    "class accuracy %": "accuracy",
    "pixel accuracy %": "pixel_accuracy",
    "mIoU %": "mIoU",
    "AP": "AP",
    "AP50": "AP50",
}
LOST_COLUMNS = {
    "attack": "attack",
    "true parts": "parts",
    "found": "found",
    "lost": "lost",
    "missed": "missed",
    "wrong part": "wrong_part",
    "badly placed": "badly_placed",
}


def build_report(record: Mapping[str, Any], folder: Path) -> Page:
    """Return the page of a record.

    Args:
        record: of any schema.
        folder: where its npz files are.
    """
    parts = []
    for dataset, entry in evaluations(record).items():
        warnings = (record.get("warnings") or {}).get(dataset) or []
        sections = [
            _summary(entry, warnings),
            _checks(entry),
            union_section(entry),
            _tiers(entry),
            rounds_section(entry),
            local_section(entry),
            _matrix(entry),
            _lost_parts(entry),
            _curves(entry),
            certified_section(entry),
            _breakdown(entry),
            _confusion(entry),
            _examples(entry, folder),
            local_examples(entry, folder),
            _facts(entry),
        ]
        parts.append(Part(dataset, sections))
    parts.append(Part("", [_attacks(record), _provenance(record)]))
    name = record.get("name") or folder.resolve().name
    words = [str(record[key]) for key in ("architecture", "venue") if record.get(key)]
    return Page(f"Robustness of {name}", ", ".join(words), parts)


def _summary(entry: Entry, warnings: Sequence[str]) -> Section:
    checks = from_record(entry.get("checks") or [])
    fine = reportable(checks) and entry.get("reportable", True)
    findings = any(check.status == "fail" for check in checks) or not checks
    tone = ("warning" if findings else "good") if fine else "bad"
    # The record's own sentence, or one made from its numbers; errors among the checks overrule both.
    recorded = entry.get("verdict") if reportable(checks) else None
    texts = [Text(recorded or verdict(checks, headline_sentence(entry)), tone)]
    texts += [Text(f"Warning: {sentence}", "warning") for sentence in warnings]
    return Section("Summary", texts=texts, tiles=[*_accuracy_tiles(entry), _check_tile(checks)])


def _accuracy_tiles(entry: Entry) -> list[Tile]:
    results = {"clean": entry.get("clean"), entry.get("headline"): entry.get("headline_result")}
    results |= {tier: values.get("robust") for tier, values in (entry.get("tiers") or {}).items()}
    results |= {name: union.get("robust") for name, union in (entry.get("unions") or {}).items()}
    # Of the headline's threat model.
    results["worst case over all"] = None if entry.get("unions") else entry.get("worst_case")
    return [
        Tile(str(name), f"{result['accuracy']:.1f} %", _tile_detail(result, entry) + bound_cell(entry, name))
        for name, result in results.items()
        if result and result.get("accuracy") is not None
    ]


def _tile_detail(result: Mapping[str, Any], entry: Entry) -> str:
    """Return the number of correct images or "of pixels", and the interval, whose ends stay on one line."""
    images = entry.get("num_images") or 0
    count = f"{result['correct']:,} of {images:,}," if result["correct"] <= images else "of pixels,"
    return f"{count} {to_text(result.get('interval'))}".replace(", ", ",\u00a0").replace(",\u00a0[", ", [")


def _check_tile(checks: Sequence[CheckResult]) -> Tile:
    word = "warnings" if any(check.status == "fail" for check in checks) else "pass"
    return Tile("checks", (word if reportable(checks) else "errors") if checks else "none ran", summary(checks))


def _checks(entry: Entry) -> Section:
    checks = from_record(entry.get("checks") or [])
    order = {"fail": 0, "pass": 1, "skipped": 2}
    rows = []
    for check in sorted(checks, key=lambda c: (order.get(c.status, 3), c.level != "error", int(c.id[1:] or 0))):
        result = check.level if check.status == "fail" else check.status
        tone = {"error": "bad", "warning": "warning", "pass": "good"}.get(result, "")
        rows.append(
            {
                "": check.id,
                "check": check.name,
                "result": Cell(result, tone),
                "finding": check.sentence,
                "remedy": check.remedy,
            }
        )
    return Section("Checks", tables=[make_table(summary(checks), rows)])


def _tiers(entry: Entry) -> Section:
    tables = []
    for tier, values in (entry.get("tiers") or {}).items():
        words = ", ".join(filter(None, (values.get("objective"), "attacks in order; passes count images")))
        rows = select(values.get("attacks"), TIER_COLUMNS)
        for row in rows:
            row["seconds"] = None if row["seconds"] is None else round(row["seconds"])
        tables.append(make_table(f"{tier}: {words}", rows))
    return Section("Attacks in order", tables=tables)


def _matrix(entry: Entry) -> Section:
    metrics = list(MATRIX_COLUMNS.values())[2:]
    entries = entry.get("attack_matrix") or []
    if not any(row.get(metric) is not None for row in entries for metric in metrics):
        return Section("Attack matrix")
    caption = "Each metric under each attack; a metric is robust only under attacks on its own head"
    return Section("Attack matrix", tables=[make_table(caption, select(entries, MATRIX_COLUMNS), digits=2)])


def _lost_parts(entry: Entry) -> Section:
    caption = "true parts that are found without attack, and what became of those that are lost under it"
    tiers = (entry.get("tiers") or {}).items()
    tables = [make_table(f"{name}: {caption}", select(tier.get("lost_parts"), LOST_COLUMNS)) for name, tier in tiers]
    return Section("Lost parts", tables=tables)


def _curves(entry: Entry) -> Section:
    eps, figures = entry.get("eps"), []
    curve = sorted(entry.get("eps_curve") or [], key=lambda point: point["eps"])
    if curve:
        ends = [f"{point['accuracy']:.1f} % at eps {point['eps']:g}" for point in (curve[0], curve[-1])]
        words = f"Falls from {ends[0]} to {ends[1]}; the band is the 95 % interval, the dotted line the threat model."
        figures.append(Figure(plots.eps_curve(curve, eps), "Accuracy against eps", words))
    if convergence := {name: values for name, values in (entry.get("convergence") or {}).items() if len(values)}:
        words = f"Mean loss along the steps of {', '.join(convergence)}: flat at the right end means converged."
        figures.append(Figure(plots.convergence(convergence), "Convergence", words))
    if found := entry.get("fab_distances"):
        median = sorted(found)[len(found) // 2]
        words = f"{len(found)} images, median {median:.1f} of 255 levels. The dotted line is the threat model."
        figures.append(Figure(plots.distances(found, eps), "Distance to the nearest adversarial image", words))
    rows = [
        {"eps": f"{point['eps']:g}", "accuracy %": point["accuracy"], "95 % interval": point.get("interval")}
        for point in curve
    ]
    return Section("Curves", figures=figures, tables=[make_table("Accuracy against eps", rows)], wide=True)


def _breakdown(entry: Entry) -> Section:
    attacked = f"{headline_result(entry)[0] or 'attacked'} %"
    accuracies = {"images": "images", "clean %": "clean", attacked: "robust"}
    share = "IoU" if entry.get("part_measure") == "IoU" else "share of its pixels that is found"
    part_columns = {"part": "name", "pixels": "pixels", "clean %": "clean", "attacked %": "attacked"}
    sizes = [
        {"share of the image": f"{100 * row['low']:.1f} to {100 * row['high']:.1f} %", **values}
        for row in entry.get("by_size") or ()
        for values in select([row], accuracies)
    ]
    tables = [
        make_table("Class accuracy by class", select(entry.get("per_class"), {"class": "name", **accuracies})),
        make_table("Class accuracy by size of the object", sizes),
        make_table(f"Parts: {share}", select(entry.get("per_part"), part_columns)),
    ]
    return Section("Classes, sizes and parts", tables=tables, wide=True)


def _confusion(entry: Entry) -> Section:
    title, counts = "Predictions under attack", entry.get("clean_to_attacked") or []
    classes = (entry.get("classes") or [f"class {index}" for index in range(len(counts))])[: len(counts)]
    if len(counts) > MATRIX_CLASSES:
        return Section(title, tables=[_frequent_changes(counts, classes)])
    rows = []
    for name, row in zip(classes, counts, strict=True):
        cells = [Cell(to_text(count), shade=count / max(sum(row), 1)) for count in row]
        rows.append([Cell(to_text(name)), *cells])
    caption = "Images correct without attack, by class (rows) and class predicted under attack (columns)"
    return Section(title, tables=[Table(caption, ["class", *classes], rows)])


def _frequent_changes(counts: Sequence[Sequence[int]], classes: Sequence[str]) -> Table:
    changes = [
        (-count, row, column)
        for row, values in enumerate(counts)
        for column, count in enumerate(values)
        if row != column and count
    ]
    rows = [
        {
            "class": classes[row],
            "under attack": classes[column],
            "images": -count,
            "% of the class": 100.0 * -count / max(sum(counts[row]), 1),
        }
        for count, row, column in sorted(changes)[:CHANGES]
    ]
    return make_table(f"The {len(rows)} most frequent changes", rows)


def _examples(entry: Entry, folder: Path) -> Section:
    arrays = load_arrays(folder, (entry.get("files") or {}).get("pictures"))
    # Pictures are of the first tier.
    tiers = entry.get("tiers") or {}
    name = next(iter(tiers), "")
    shown = {**entry, **tiers.get(name, {})} if name else {}
    # Under other norms no pixel changes by the radius.
    eps = shown.get("eps") if (shown.get("norm") or "linf") == "linf" else None
    return example_section(arrays, entry.get("classes") or [], entry.get("parts") or [], eps, name)


def _facts(entry: Entry) -> Section:
    files = entry.get("files") or {}
    facts = {
        "threat model": threat_model_text(entry),
        "images": entry.get("num_images"),
        "image list, SHA-256": entry.get("image_list_sha256"),
        "seeds": _words(entry.get("seeds")),
        "forward passes, images": entry.get("forwards"),
        "backward passes, images": entry.get("backwards"),
        "time": f"{entry['seconds']:,.0f} s" if entry.get("seconds") else "",
        "device": entry.get("device"),
        "flags of every image": files.get("flags"),
        "adversarial images": files.get("adversarials"),
        "predictions": files.get("predictions"),
    }
    return Section("Evaluation", tables=[_fact_table("What was evaluated, and its cost", facts)])


def _provenance(record: Mapping[str, Any]) -> Section:
    checkpoint = record.get("checkpoint") or {}
    facts = {
        "checkpoint": checkpoint.get("path"),
        "checkpoint, SHA-256": checkpoint.get("sha256"),
        "source of the callable, SHA-256": checkpoint.get("source_sha256"),
        "preprocessing": _words(record.get("preprocessing")),
        "config, SHA-256": record.get("config_sha256"),
        "precision": _words(record.get("precision")),
        "versions": _words(record.get("versions")),
        "schema of the record": record.get("schema"),
    }
    config = record.get("config")
    code = Code("The complete config", str(config)) if config else None
    return Section("Provenance", tables=[_fact_table("What the numbers were made with", facts)], code=code)


def _fact_table(caption: str, facts: Mapping[str, Any]) -> Table:
    return make_table(caption, [{"what": name, "value": value} for name, value in facts.items() if value])


def _attacks(record: Mapping[str, Any]) -> Section:
    rows = [
        {
            "name": name,
            "attack": values.get("attack"),
            "maximises": values.get("objective"),
            "threat model": threat_model_text(values.get("threat_model") or {}),
            "everything else": _words(values, leave_out=("attack", "objective", "threat_model")),
        }
        for name, values in (record.get("attacks") or {}).items()
    ]
    return Section("Attack settings", tables=[make_table("Everything needed to repeat the attacks", rows)])


def _words(values: Mapping[str, Any] | None, leave_out: Sequence[str] = ()) -> str:
    """Return values as text, such as "steps 100, seed 0"."""
    return ", ".join(
        f"{key} {value if isinstance(value, (str, int, float)) else json.dumps(value)}"
        for key, value in (values or {}).items()
        if key not in leave_out
    )
