"""Numbers as foreign files spell them: as text, as NaN, in lists."""

from __future__ import annotations

import math
import sys
from typing import Any


def is_number(value: Any) -> bool:
    """A finite json number that a float can hold."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def as_number(value: Any) -> int | float | None:
    """The finite number that a json value is or spells, None where it is none."""
    if is_number(value):
        return value
    if isinstance(value, str):
        try:
            number = float(value)
        except ValueError:
            return None
        return number if math.isfinite(number) else None
    return None


def as_side(value: Any) -> int:
    """Width or height in pixels, 0 where the value is not a positive number."""
    number = as_number(value)
    return int(number) if number is not None and 1 <= number < 1 << 31 else 0


def as_identifier(value: Any, where: str) -> int | str:
    """The id that a json value is: text of digits is the number, other text stays.

    Raises:
        ValueError: neither number nor text.
    """
    if isinstance(value, str):
        text = value.strip()
        return int(text) if text.lstrip("-").isdecimal() and text.isascii() else value
    if is_number(value) and value == int(value):
        return int(value)
    raise ValueError(f"{where} has the id {value!r}: it must be a whole number or a text")


def is_set(value: Any) -> bool:
    """Return whether a flag such as `iscrowd` is set, also as text."""
    number = as_number(value)
    return number != 0 if number is not None else str(value).strip().lower() in ("true", "yes")


def as_name(value: Any, where: str) -> str:
    """Return the name that a value of a json or yaml file is.

    Raises:
        ValueError: it is empty, or neither text nor a whole number (yaml reads a bare `no` as false).
    """
    if not isinstance(value, (str, int)) or isinstance(value, bool) or not str(value).strip():
        hint = ", in quotes" if isinstance(value, bool) else ""
        raise ValueError(f"{where} has the name {value!r}: give it a name{hint}")
    return str(value).strip()
