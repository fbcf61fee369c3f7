"""The class of each image: from its folder, its name, a table, the tool's own file, or the annotated parts."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePosixPath

from part_robust.data.importers.class_rule import read_class_rule, shown
from part_robust.data.importers.items import Item, folder_of, plain_name
from part_robust.data.importers.report import ImportCounts
from part_robust.data.part_json import folded_name

# Items of one source -> class names, None where an image has none.
ClassSource = Callable[[Sequence[Item]], list[str | None]]

# Folders that hold images of every class.
_GENERAL_FOLDERS = frozenset(
    ("images", "image", "imgs", "img", "photos", "pictures", "data", "default", "upload", "jpegimages", "train")
    + ("training", "valid", "validation", "val", "test", "testing")
)
CLASS_FROM = "folder, tag, supercategory, attribute:NAME, name:REGEX, csv:FILE, rule:FILE or always:CLASS"


def class_source(text: str, tally: ImportCounts, skip_unclassed: bool = False) -> ClassSource:
    """The source that a --class-from names.

    Raises:
        FileNotFoundError, ValueError: it names none, or a file that cannot be read.
    """
    kind, _, value = text.partition(":")
    plain = {"folder": class_from_folder, "tag": class_from_tag, "supercategory": class_from_supercategory}
    if text in plain:
        return plain[text]
    if kind == "attribute" and value:
        return lambda items: [_most_common(_attribute(raw, value) for raw in item.raw) for item in items]
    if kind == "always" and value:
        return lambda items: [value] * len(items)
    if kind == "name" and value:
        return class_from_name(value)
    if kind == "csv" and value:
        return CsvClasses(Path(value), tally, skip_unclassed)
    if kind == "rule" and value:
        return read_class_rule(Path(value))
    raise ValueError(f"--class-from must be {CLASS_FROM}, got {text!r}")


def class_from_folder(items: Sequence[Item]) -> list[str | None]:
    """`dogs/7.jpg` is of class `dogs`: the folder the image lies in, not one of a web address or another machine.

    Raises:
        ValueError: some file names have no folder, or all lie in one that means no class.
    """
    names = [_name_below_root(item) for item in items]
    flat = [name for name in names if folder_of(name) is None]
    if flat:
        raise ValueError(
            f"--class-from folder: {len(flat)} of {len(items)} file names have no folder, first: {shown(flat)}. "
            "Name the class with --class-csv or --class-rule"
        )
    folders = [folder_of(name) for name in names]
    found = {str(folder) for folder in folders}
    if len(found) == 1 and found & {name for name in found if name.lower() in _GENERAL_FOLDERS}:
        raise ValueError(
            f"--class-from folder: all {len(items)} images lie in the folder {found.pop()!r}, which names no class. "
            f"Name the class otherwise: --class-from {CLASS_FROM}"
        )
    return folders


def _name_below_root(item: Item) -> str:
    """Name of the file that was found; the tool's own where that is only spelled otherwise."""
    own = not item.found or folded_name(item.found) == folded_name(item.file_name)
    return item.file_name if own else item.found


def class_from_tag(items: Sequence[Item]) -> list[str | None]:
    """The class that the tool's own file gives the image (CVAT's tags, Label Studio's choices, ...)."""
    return [item.label for item in items]


def class_from_supercategory(items: Sequence[Item]) -> list[str | None]:
    """The supercategory of most of the image's parts.

    Raises:
        ValueError: no part has one.
    """
    labels = [_most_common(str(raw.get("supercategory") or "") for raw in item.raw) for item in items]
    if items and not any(labels):
        raise ValueError(
            f"--class-from supercategory: none of the parts of {len(items)} images has a supercategory. Name the class "
            f"otherwise: --class-from {CLASS_FROM}"
        )
    return labels


def class_from_name(pattern: str) -> ClassSource:
    """Return a source that takes the class from the file name, by a regular expression.

    The class is what the expression's first group finds, or all of it where it has no group.

    Raises:
        ValueError: no regular expression.
    """
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"--class-from name:{pattern} is not a regular expression: {error}") from error

    def find(items: Sequence[Item]) -> list[str | None]:
        found = [expression.search(item.file_name) for item in items]
        missing = [item.file_name for item, match in zip(items, found, strict=True) if match is None]
        if missing:
            raise ValueError(
                f"--class-from name:{pattern} finds nothing in {len(missing)} of {len(items)} file names, first: "
                f"{shown(missing)}"
            )
        return [match.group(1 if expression.groups else 0) for match in found if match is not None]

    return find


def _attribute(raw: dict, name: str) -> str:
    """Text of a text attribute, name of a check box that is ticked."""
    attributes = raw.get("attributes")
    value = attributes.get(name) if isinstance(attributes, dict) else None
    return name if value is True else str(value) if value not in (None, False, "") else ""


def _most_common(values: Iterable[str]) -> str | None:
    """The most frequent value that is not empty; of several equally frequent ones the first in the alphabet."""
    counts = Counter(value for value in values if value)
    return min(counts, key=lambda value: (-counts[value], value), default=None)


class CsvClasses:
    """Table with the columns `file_name` and `class`; further columns are ignored.

    A row may give the bare name of a file where only one image has it.

    Args:
        path: csv file with a header.
        tally: receives the rows that no image has.
        skip_unclassed: images without a row get None instead of raising.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the header lacks a column, or an image has two classes.
    """

    def __init__(self, path: Path, tally: ImportCounts, skip_unclassed: bool = False) -> None:
        self.path, self.tally, self.skip_unclassed = path, tally, skip_unclassed
        self.rows: dict[str, str] = {}
        self.used: set[str] = set()
        for line, row in read_table(path, ("file_name", "class"), "--class-csv"):
            name, label = plain_name(row["file_name"]), row["class"]
            if not name or not label:
                raise ValueError(f"{path}, line {line}: file_name and class must not be empty")
            if self.rows.setdefault(name, label) != label:
                raise ValueError(f"{path}: {name} is both {self.rows[name]!r} and {label!r}")

    def __call__(self, items: Sequence[Item]) -> list[str | None]:
        bare = Counter(PurePosixPath(item.file_name.strip()).name for item in items)
        labels: list[str | None] = []
        missing, shared = [], []
        for item in items:
            given = item.file_name.strip()  # as the values of the table
            name = PurePosixPath(given).name
            row = given if given in self.rows else name
            if row != given and row in self.rows and bare[name] > 1:
                shared.append(item.file_name)
            elif row in self.rows:
                self.used.add(row)
            else:
                missing.append(item.file_name)
            labels.append(self.rows.get(row))
        if shared:
            raise ValueError(
                f"{self.path}: the bare name of {shown(shared)} is that of several images: give the file_name with "
                "its folder"
            )
        if missing and not self.skip_unclassed:
            raise ValueError(
                f"{self.path} has no row for {len(missing)} of {len(items)} images, first: {shown(missing)}. "
                "Add the rows (file_name as in the json), or leave such images out with --skip-unclassed"
            )
        return labels

    def count_unused(self) -> None:
        """Count the rows of the table that no image has used."""
        for name in self.rows:
            if name not in self.used:
                self.tally.add("table_row_without_image", name)


def read_table(path: Path, columns: Sequence[str], option: str) -> Iterable[tuple[int, dict[str, str]]]:
    """(line number, row) of a csv file with a header, blanks around the values removed.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not UTF-8, a column is missing, or a field has no end.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{option} {path} does not exist")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{option} {path} is not written in UTF-8 ({error.reason}): save it as UTF-8") from error
    reader = csv.DictReader(text.splitlines())
    if not set(columns) <= set(reader.fieldnames or ()):
        raise ValueError(f"{path} must have the columns {' and '.join(columns)}, has {reader.fieldnames}")
    twice = next((name for name in columns if list(reader.fieldnames or ()).count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"{path} has the column {twice} twice, so it is unknown which one counts: remove one")
    try:
        return [(reader.line_num, {key: (row[key] or "").strip() for key in columns}) for row in reader]
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num + 1}: {error}") from error


def known_only(class_source: ClassSource, known: Sequence[str]) -> ClassSource:
    """Return the same source, which raises ValueError where it names a class that is not in the list; [] allows all."""

    def checked(items: Sequence[Item]) -> list[str | None]:
        labels = class_source(items)
        for item, label in zip(items, labels, strict=True):
            if known and label is not None and label not in known:
                raise ValueError(f"unknown class {label!r} of {item.file_name}: the classes are {', '.join(known)}")
        return labels

    return checked
