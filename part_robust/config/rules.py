"""Rules for the values of config keys: kinds of values, and the check of a whole config.

The rules are in part_robust/config/rule_table.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, NamedTuple

from detectron2.config import CfgNode

from part_robust.utils.errors import UserError


class Rule(NamedTuple):
    """Rule for the values of a key.

    Attributes:
        words: what a value must be, for "KEY must be ...".
        holds: whether a value of any type is that.
    """

    words: str
    holds: Callable[[Any], bool]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_whole(value: Any) -> bool:
    # Seeds, counts and sizes fit into 64 bits.
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def _range(kind: str, low: float | None, high: float | None, above: bool) -> str:
    if low is None:
        return kind if high is None else f"{kind} up to {high}"
    if high is None:
        return f"{kind} above {low}" if above else f"{kind} of at least {low}"
    return f"{kind} above {low} and up to {high}" if above else f"{kind} from {low} to {high}"


def _inside(value: float, low: float | None, high: float | None, above: bool) -> bool:
    return (low is None or (value > low if above else value >= low)) and (high is None or value <= high)


def number(low: float | None = None, high: float | None = None, above: bool = False) -> Rule:
    """A finite number in a range; with `above` its lower end is excluded."""
    words = _range("a number", low, high, above)
    return Rule(words, lambda value: _is_number(value) and _inside(value, low, high, above))


def whole(low: int | None = None, high: int | None = None) -> Rule:
    """A whole number in a range, ends included."""
    words = _range("a whole number", low, high, above=False)
    return Rule(words, lambda value: _is_whole(value) and _inside(value, low, high, above=False))


def one_of(*choices: str) -> Rule:
    """One of these words; "" is shown as ''."""
    shown = [choice or "''" for choice in choices]
    words = " or ".join(filter(None, [", ".join(shown[:-1]), shown[-1]]))
    return Rule(words, lambda value: isinstance(value, str) and value in choices)


def list_of(rule: Rule, words: str, length: int | None = None, least: int = 0) -> Rule:
    """A list or tuple whose entries obey a rule.

    Args:
        rule: of the entries.
        words: the entries, such as "numbers above 0".
        length: of the list, if it is fixed.
        least: shortest length.
    """
    size = f"{length} " if length is not None else ("one or more " if least else "")

    def holds(value: Any) -> bool:
        if not isinstance(value, (list, tuple)) or len(value) < least:
            return False
        return (length is None or len(value) == length) and all(rule.holds(entry) for entry in value)

    return Rule(f"a list of {size}{words}", holds)


def in_order(rule: Rule, words: str) -> Rule:
    """Same as `list_of`, in ascending order."""
    entries = list_of(rule, f"{words} in ascending order")
    return Rule(entries.words, lambda value: entries.holds(value) and list(value) == sorted(value))


def ascending(low: float, high: float | None = None) -> Rule:
    """Two numbers above `low`, the first at most the second."""
    inner = list_of(number(low, high, above=True), "numbers", length=2)
    words = f"two numbers {_range('', low, high, above=True).strip()}, the smaller one first"
    return Rule(words, lambda value: inner.holds(value) and value[0] <= value[1])


FLAG = Rule("True or False", lambda value: isinstance(value, bool))
TEXT = Rule("text", lambda value: isinstance(value, str))
NAME = Rule("a name", lambda value: isinstance(value, str) and bool(value.strip()))
NAMES = list_of(NAME, "names")
LIST = Rule("a list", lambda value: isinstance(value, (list, tuple)))
NODE = Rule("a group of keys", lambda value: isinstance(value, dict))
# Of keys without a rule of their own, by the type of the default.
OF_TYPE = {
    bool: FLAG,
    int: whole(),
    float: number(),
    str: TEXT,
    list: LIST,
    tuple: LIST,
}


def rule_of(key: str, default: Any, rules: Mapping[str, Rule]) -> Rule | None:
    """The rule of a key, by its name in `rules` or by its default; None where anything goes."""
    return rules.get(key) or (NODE if isinstance(default, dict) else OF_TYPE.get(type(default)))


def wrong(key: str, value: Any, rule: Rule | None) -> str | None:
    """A sentence where a value is not what its rule says, else None."""
    if rule is None or rule.holds(value):
        return None
    return f"{key} must be {rule.words}, got {value!r}"


def fitting(key: str, value: Any, default: Any, rules: Mapping[str, Rule]) -> Any:
    """The value as the config holds it: whole numbers of float keys become floats.

    Raises:
        UserError: it has another type than the default.
    """
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    kind = NODE if isinstance(default, dict) else OF_TYPE.get(type(default))
    # A number that is not finite has the right type: the check of the whole config refuses it.
    if kind is None or kind.holds(value) or type(value) is type(default):
        return value
    raise UserError(wrong(key, value, rules.get(key)) or wrong(key, value, kind))


def leaves(node: Mapping, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of everything in a config."""
    for name, value in node.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def check_values(cfg: CfgNode, defaults: CfgNode, rules: Mapping[str, Rule]) -> None:
    """Checks every value of a config whose key is in `defaults`.

    Raises:
        UserError: one has the wrong type, or a value that its rule excludes.
    """
    known = dict(leaves(defaults))
    for key, value in leaves(cfg):
        if key in known and (problem := wrong(key, value, rule_of(key, known[key], rules))):
            raise UserError(problem)


def check_names(key: str, names: Collection[str], known: Collection[str], where: str) -> None:
    """Check that every name is known.

    Raises:
        UserError: a name is not among those that are known.
    """
    for name in names:
        if name not in known:
            raise UserError(f"{key} must name {where} ({', '.join(sorted(known))}), got {name!r}")
