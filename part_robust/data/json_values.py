"""Kinds of json values, as the rules of the part format need them."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, TypeGuard


def is_int(value: Any) -> TypeGuard[int]:
    """Return whether a json value is an integer; json's `true` is an int in Python, but not a number in the file."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> TypeGuard[int | float]:
    """Python reads NaN and Infinity from json, and integers that no float can hold."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def is_unicode(text: str) -> bool:
    """Return whether a text can be written to a file: json may hold halves of characters, which no file can."""
    return text.encode("utf-8", "ignore").decode() == text


def has_size(image: Mapping) -> bool:
    """Return whether the image's own width and height make sense; where not, that is said once."""
    return all(is_int(image.get(key)) and image[key] > 0 for key in ("width", "height"))
