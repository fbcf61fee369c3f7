"""Schema of an evaluation's record, so that a damaged or edited one is refused by a sentence."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from part_robust.utils.errors import UserError
from part_robust.utils.files import read_json

# Kinds of values; None means not measured. A mapping gives the kind of every entry by its name, "*" of
# all others, and a list that of its entries; in a tuple they may be None.
NUMBER, TEXT, FLAG = "a number", "text", "true or false"
_TYPES = {NUMBER: (int, float), TEXT: (str,), FLAG: (bool,)}
_SCORE = {"correct": NUMBER, "accuracy": NUMBER, "interval": ([NUMBER],)}
_ROUNDS = {
    "restarts": ({"number": NUMBER, "broke": [NUMBER], "gain": NUMBER},),
    "bound": (
        {
            "points": NUMBER,
            "images": NUMBER,
            "confidence": NUMBER,
            "asked_for": NUMBER,
            "attacks": [TEXT],
            "stood": NUMBER,
            "drawn": NUMBER,
            "fell": NUMBER,
            "at_least": NUMBER,
            "order_seed": NUMBER,
        },
    ),
}
_EVALUATION = {
    "num_images": NUMBER,
    "classes": [TEXT],
    "parts": [TEXT],
    "headline": TEXT,
    "eps": NUMBER,
    "norm": TEXT,
    "clean": (_SCORE,),
    "worst_case": (_SCORE,),
    "headline_result": (_SCORE,),
    "tiers": {
        "*": {
            "eps": NUMBER,
            "norm": TEXT,
            "attacks": [{"name": TEXT}],
            "robust": (_SCORE,),
            **_ROUNDS,
            "lost_parts": ([{"attack": TEXT, "*": NUMBER}],),
        }
    },
    "local": (
        {
            "table": [{"region": TEXT, "images": NUMBER, "robust": (_SCORE,), "all_images": (_SCORE,)}],
            "worst_part": ({"images": NUMBER, "robust": (_SCORE,), "all_images": (_SCORE,)},),
            "worst": {"images": NUMBER, "robust": (_SCORE,), "all_images": (_SCORE,)},
        },
    ),
    "unions": ({"*": {"tiers": [TEXT], "robust": _SCORE, "broken_by_one": {"*": NUMBER}}},),
    "attack_matrix": ([{"attack": TEXT, "accuracy": NUMBER, "pixel_accuracy": NUMBER, "AP": NUMBER}],),
    "files": {"flags": TEXT, "local": TEXT, "adversarials": TEXT, "pictures": TEXT, "predictions": TEXT},
    "transfer": ({"standing": NUMBER, "broke": NUMBER, "siblings": [{"name": TEXT}]},),
    "smoothing": (
        {
            "sigma": NUMBER,
            "samples": NUMBER,
            "largest_radius": NUMBER,
            "accuracy": _SCORE,
            "certified": [{"eps": NUMBER, **_SCORE}],
            "attacked": [{"eps": NUMBER, **_SCORE}],
            "trials": [{"image_id": NUMBER, "distance": NUMBER, "draws": NUMBER, "votes": NUMBER, "count": NUMBER}],
        },
    ),
    "rescored": ({"images": NUMBER, "mismatches": NUMBER},),
    "checks": ([{"id": TEXT, "status": TEXT, "sentence": TEXT}],),
    "reportable": FLAG,
}
RECORD = {
    "results": {"*": {}},
    "attacks": {"*": {}},
    "warnings": {"*": [TEXT]},
    "checkpoint": {"path": TEXT, "sha256": TEXT, "source_sha256": TEXT},
    "preprocessing": {"size": NUMBER, "notes": [TEXT]},
    "config": TEXT,
    "evaluation": {"*": _EVALUATION},
}


def read_record(path: str | Path) -> dict[str, Any]:
    """Reads the record of an evaluation, of any version.

    Raises:
        UserError: the file is not a json, or something in it has another type than evaluations write.
    """
    record = read_json(path, "evaluate again")
    check_record(record, path)
    return record


def check_record(record: Any, path: str | Path) -> None:
    """Checks the types of what a record holds.

    Args:
        record: parsed.
        path: where it lies, for the message.

    Raises:
        UserError: something in it has another type than evaluations write.
    """
    problem = wrong_entry(record, RECORD, "")
    for dataset, evaluation in (record.get("evaluation") or {}).items() if not problem else ():
        tiers, headline = evaluation.get("tiers") or {}, evaluation.get("headline")
        if tiers and headline is not None and headline not in tiers:
            problem = f"{headline!r} as evaluation.{dataset}.headline, which must be one of its tiers"
    if problem:
        raise UserError(f"{path} must be the record of an evaluation, got {problem}: evaluate again")


def wrong_entry(value: Any, kind: Any, name: str) -> str | None:
    """Return a description of the first entry of another kind; None where all are right.

    Args:
        value: of a record, or a part of it.
        kind: what it must be, as `RECORD` says it.
        name: of the value in the record, with dots between; "" for the whole.
    """
    if isinstance(kind, str):
        good = value is None or (isinstance(value, _TYPES[kind]) and isinstance(value, bool) == (kind == FLAG))
        return None if good else _found(value, name, kind)
    if isinstance(kind, tuple):
        return None if value is None else wrong_entry(value, kind[0], name)
    if isinstance(kind, list):
        if not isinstance(value, list):
            return _found(value, name, "a list")
        entries = [(f"{name}[{index}]", entry, kind[0]) for index, entry in enumerate(value)]
    else:
        if not isinstance(value, Mapping):
            return _found(value, name, "a group of entries")
        known = {key: kind.get(key, kind.get("*")) for key in value}
        entries = [(f"{name}.{key}".strip("."), value[key], known[key]) for key in value if known[key] is not None]
    return next(filter(None, (wrong_entry(entry, of, where) for where, entry, of in entries)), None)


def _found(value: Any, name: str, words: str) -> str:
    shown = repr(value)
    shown = f"{shown[:37]}..." if len(shown) > 40 else shown
    return f"{shown} as {name}, which must be {words}" if name else f"{shown}, which is not a group of entries"
