"""Entries of published annotation files, checked before use: what is missing or no number is named with its place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from part_robust.data.json_values import is_number
from part_robust.data.part_json import parse_json

_NUMBERS = ("width", "height")
_IDS = ("id", "image_id", "category_id")
_TEXTS = ("file_name", "name")


def read_entries(path: Path, required: Mapping[str, Sequence[str]]) -> dict:
    """Parses a COCO-like json; ids that are text of digits become the numbers they are.

    Args:
        path: the file.
        required: {list of the json: keys that each of its entries must have}.

    Raises:
        ValueError: not json, or an entry is broken; names the file and the entry.
    """
    data = parse_json(path)
    for key, fields in required.items():
        entries = data.get(key) if isinstance(data, Mapping) else None
        if not isinstance(entries, list):
            raise ValueError(f"{path} is not a COCO json: it must have the list {key}")
        for index, entry in enumerate(entries):
            if not isinstance(entry, dict):
                raise ValueError(f"{path}: {key}[{index}] must be an object, is {type(entry).__name__}")
            for name in fields:
                check_entry(entry, name, f"{path}: {key}[{index}]")
    return data


def check_entry(entry: dict, name: str, where: str) -> None:
    """Checks one value of an entry; an id is replaced by the number it spells.

    Raises:
        ValueError: it is missing, or of another kind.
    """
    value = entry.get(name)
    if value is None:
        raise ValueError(f"{where} has no {name!r}: download the file again")
    if name in _IDS:
        entry[name] = as_id(value, f"{where}, {name}")
    elif name in _NUMBERS and (not is_number(value) or value < 1):
        raise ValueError(f"{where} has the {name} {value!r}: it must be a number from 1 on")
    elif name in _TEXTS and (not isinstance(value, str) or not value.strip()):
        raise ValueError(f"{where} has the {name} {value!r}: it must be a text that is not empty")


def as_id(value: Any, where: str) -> int:
    """The id that a json value is; text of digits is the number.

    Raises:
        ValueError: the value is not a whole number.
    """
    if isinstance(value, str) and value.isdecimal() and value.isascii():
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise ValueError(f"{where} is {value!r}: it must be a whole number")
