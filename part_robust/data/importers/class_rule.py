"""The class of an image from a rule over the parts that are annotated, and which parts a class owns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from part_robust.data.importers.items import Item

CONDITIONS = ("all_of", "any_of", "none_of", "at_least")


def shown(names: Sequence[str]) -> str:
    """The first three."""
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def read_declaration(path: Path, option: str) -> Any:
    """Parses a json or yaml file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not yaml.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{option} {path} does not exist")
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))  # json is yaml
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{option} {path} is not valid yaml or json: {error}") from error


@dataclass(frozen=True)
class Clause:
    """One `rules` entry: its class, and what must hold of the set of annotated parts."""

    label: str
    all_of: frozenset[str]
    none_of: frozenset[str]
    at_least: tuple[tuple[int, frozenset[str]], ...]  # any_of is one of these with count 1

    def holds(self, parts: set[str]) -> bool:
        """Return whether the clause is true of a set of part names."""
        return (
            self.all_of <= parts
            and not self.none_of & parts
            and all(len(group & parts) >= count for count, group in self.at_least)
        )


@dataclass(frozen=True)
class ClassRule:
    """First clause that holds names the class; see docs/import_coco.md for the file."""

    path: Path
    clauses: tuple[Clause, ...]
    unmatched: str  # "skip", "error", or a class

    @property
    def class_names(self) -> list[str]:
        """The classes in the order of the file."""
        default = [] if self.unmatched in ("skip", "error") else [self.unmatched]
        return list(dict.fromkeys([clause.label for clause in self.clauses] + default))

    def check_parts(self, part_names: Sequence[str]) -> None:
        """Check that the json has every part that the rule names.

        Raises:
            ValueError: it lacks some.
        """
        used = {
            part
            for clause in self.clauses
            for part in clause.all_of.union(clause.none_of, *(group for _, group in clause.at_least))
        }
        unknown = sorted(used - set(part_names))
        if unknown:
            raise ValueError(
                f"--class-rule {self.path} names parts that the json does not have: {', '.join(unknown)}. "
                f"It has: {', '.join(part_names)}"
            )

    def __call__(self, items: Sequence[Item]) -> list[str | None]:
        labels = [
            next((clause.label for clause in self.clauses if clause.holds(item.part_names)), None) for item in items
        ]
        missing = [item.file_name for item, label in zip(items, labels, strict=True) if label is None]
        if missing and self.unmatched == "error":
            raise ValueError(
                f"--class-rule {self.path}: no clause holds for {len(missing)} of {len(items)} images, first: "
                f"{shown(missing)}. Add clauses, a default class, or `unmatched: skip`"
            )
        if self.unmatched not in ("skip", "error"):
            return [label or self.unmatched for label in labels]
        return labels


def read_class_rule(path: Path) -> ClassRule:
    """Reads a rule file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a key is unknown or missing, or a value has another type.
    """
    data = read_declaration(path, "--class-rule")
    if not isinstance(data, Mapping) or not isinstance(data.get("rules"), list) or not data["rules"]:
        raise ValueError(f"--class-rule {path} must have a list `rules` with at least one entry")
    unknown = sorted(set(data) - {"groups", "rules", "unmatched"})
    if unknown:
        raise ValueError(f"--class-rule {path}: unknown keys {', '.join(unknown)}; known: groups, rules, unmatched")
    if not isinstance(data.get("unmatched"), str):
        raise ValueError(f"--class-rule {path} must say `unmatched`: skip, error, or the class of all other images")
    clauses = tuple(_clause(entry, f"--class-rule {path}, rules[{i}]") for i, entry in enumerate(data["rules"]))
    return ClassRule(path, clauses, data["unmatched"])


def _clause(entry: Any, where: str) -> Clause:
    if not isinstance(entry, Mapping) or not isinstance(entry.get("class"), str):
        raise ValueError(f"{where} must have a `class`, a name")
    unknown = sorted(set(map(str, entry)) - {"class", *CONDITIONS})
    if unknown:
        raise ValueError(f"{where}: unknown keys {', '.join(unknown)}; known: class, {', '.join(CONDITIONS)}")
    if len(entry) == 1:
        raise ValueError(f"{where} has no condition; for a default class write `unmatched: {entry['class']}`")
    at_least = []
    if "any_of" in entry:
        at_least.append((1, frozenset(_names(entry["any_of"], f"{where}, any_of"))))
    wanted = entry.get("at_least", [])
    for item in [wanted] if isinstance(wanted, Mapping) else wanted:
        if not isinstance(item, Mapping) or set(item) != {"count", "of"} or not isinstance(item["count"], int):
            raise ValueError(f"{where}: at_least must be {{count: NUMBER, of: [PART, ...]}} or a list of these")
        at_least.append((item["count"], frozenset(_names(item["of"], f"{where}, at_least"))))
    return Clause(
        label=entry["class"],
        all_of=frozenset(_names(entry.get("all_of", []), f"{where}, all_of")),
        none_of=frozenset(_names(entry.get("none_of", []), f"{where}, none_of")),
        at_least=tuple(at_least),
    )


def _names(value: Any, where: str) -> Iterator[str]:
    """Part names of a list that may hold lists, so that yaml aliases of groups can be joined."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _names(item, where)
    else:
        raise ValueError(f"{where} must be a list of part names, is {value!r}")


def read_class_parts(path: Path, part_names: Sequence[str]) -> dict[str, list[str]]:
    """Reads {class: [part, ...]} (json or yaml); classes keep the file's order.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another shape, or unknown parts.
    """
    data = read_declaration(path, "--class-parts")
    if not isinstance(data, Mapping) or not data or not all(isinstance(parts, list) for parts in data.values()):
        raise ValueError(f"--class-parts {path} must map each class to the list of its parts")
    result = {}
    for label, parts in data.items():
        unknown = [str(part) for part in parts if part not in part_names]
        if unknown:
            raise ValueError(f"--class-parts {path}: class {label!r} has unknown parts: {shown(unknown)}")
        result[str(label)] = [part for part in part_names if part in parts]
    return result
