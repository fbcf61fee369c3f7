"""Items that every reader of a format gives: images with their parts as the tool wrote them, and names of the parts.

Letters: H, W image height and width in pixels.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from part_robust.data.importers.report import ImportCounts

_ROBOFLOW_COPY = re.compile(r"(.+)\.rf\.[^./]+\.[^./]+$")
DIVIDE = "fractions"  # split name of the sources whose images the fractions divide


class MaskFile(NamedTuple):
    """A mask in a separate file; `read(path, key)` gives it as bool (H, W)."""

    read: Callable[[str, Any], np.ndarray]
    path: str
    key: Any


@dataclass
class Item:
    """One image.

    Attributes:
        file_name: relative to the image root of its source, forward slashes.
        found: the file below the image root that the name means, once it was looked for.
        width, height: what the tool says, in pixels; 0 where it does not say.
        has_size: whether the tool's format says the size at all.
        source_id: the tool's own id of the image, for the result's `source`.
        label: the class that the tool's own file gives the image, None where it gives none.
        split: the split that the tool's own file puts the image in, None where it names none of ours.
        origin: what images that were made of one picture have in common, None where the tool does not say.
        raw: parts as the tool wrote them: `part` (name), `where` (for messages), and COCO's `segmentation` (also a
            `MaskFile`), `bbox`, `iscrowd`; optional `attributes`, `supercategory`, `is_target`, `object_id`, and
            `ignore` for a region that counts nowhere.
        fits_both: the file says the stored size of a picture that EXIF turns, and the parts fit either frame.
        lost: number of parts that could not be read: the pixels of this image without a part are unknown.
        without_area: names of what is marked with points or lines.
        parts, ignore: filled in by `clean.clean_item`: usable parts, and RLEs of regions that count nowhere.
        key: unique name of the image in the result; the file name if empty.
    """

    file_name: str
    width: int = 0
    height: int = 0
    source_id: Any = None
    label: str | None = None
    split: str | None = None
    origin: str | None = None
    raw: list[dict] = field(default_factory=list)
    lost: int = 0
    without_area: list[str] = field(default_factory=list)
    parts: list[dict] = field(default_factory=list)
    ignore: list[dict] = field(default_factory=list)
    key: str = ""
    has_size: bool = True
    found: str = ""
    fits_both: bool = False

    def name_class(self, label: str, tally: ImportCounts) -> None:
        """Takes a class that the tool's file gives the image; the first of several counts."""
        if self.label not in (None, label):
            tally.add("several_classes", f"{self.file_name}: {self.label} and {label}")
        self.label = self.label or label

    def add_without_area(self, part: str, where: str, tally: ImportCounts) -> None:
        """Counts points or a line that mark a part."""
        tally.add("shape_kind", where)
        self.without_area.append(part)

    @property
    def part_names(self) -> set[str]:
        """Names of the usable parts."""
        return {part["part"] for part in self.parts}


@dataclass
class Contents:
    """Everything that a reader found in one source.

    Attributes:
        items: images in the order of their file names.
        parts: names of all parts, in the order of the tool's own list.
        supercategories: {part: object it belongs to}, for the parts that say so.
        described: json value that changes with everything the items depend on.
        counts: numbers of images, annotations and categories in the source.
    """

    items: list[Item]
    parts: list[str]
    supercategories: dict[str, str] = field(default_factory=dict)
    described: Any = None
    counts: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Source:
    """One file or folder of a tool: where it is, the folder its file names are relative to, its split (or DIVIDE)."""

    json_file: Path
    image_root: Path
    split: str = DIVIDE

    @property
    def title(self) -> str:
        """File and folder, which tell sources apart and are the same on every machine."""
        return "/".join(self.json_file.resolve().parts[-2:])


def tool_contents(items: Sequence[Item], parts: Sequence[str]) -> Contents:
    """Contents of a tool's own file: items by file name, parts without the background.

    A part that is drawn in some images and only marked with points or lines in others is lost in the latter.
    """
    items = sorted(items, key=lambda item: item.file_name)
    drawn = {raw["part"] for item in items for raw in item.raw}
    for item in items:
        item.lost += sum(name in drawn for name in item.without_area)
    names = [name for name in dict.fromkeys(parts) if not is_background(name)]
    for item in items:
        item.raw = [raw for raw in item.raw if not is_background(raw["part"])]
    return _counted(items, names)


def _counted(items: list[Item], names: list[str]) -> Contents:
    counts = {"images": len(items), "annotations": sum(len(item.raw) + item.lost for item in items)}
    return Contents(items, names, described=described_items(items), counts=counts | {"categories": len(names)})


def by_split(source: Source, contents: Contents) -> list[tuple[Source, Contents]]:
    """Divide a tool's own file by the splits that it names; the fractions divide what it names none for.

    Args:
        source: the file.
        contents: of `tool_contents`.
    """
    divided: dict[str, list[Item]] = {}
    for item in contents.items:
        divided.setdefault(item.split or DIVIDE, []).append(item)
    if len(divided) < 2:  # also where all images are of one split: there would be no other
        return [(source, contents)]
    return [(replace(source, split=name), _counted(divided[name], contents.parts)) for name in sorted(divided)]


def origin_of(file_name: str) -> str | None:
    """Return the picture that Roboflow made an image of: its augmented copies are called NAME.rf.HASH."""
    found = _ROBOFLOW_COPY.match(PurePosixPath(file_name).name)
    return found.group(1) if found else None


def is_background(name: str) -> bool:
    """Return whether a name is that of the background: "_background_", "__background__", "Background" or "bg"."""
    return name.strip("_ ").lower() in ("background", "bg")


def plain_name(file_name: str) -> str:
    """Forward slashes, no "./" in front, no doubled slash."""
    name = re.sub(r"(?<!:)/{2,}", "/", file_name.replace("\\", "/"))
    return name.removeprefix("./")


def folder_of(name: str) -> str | None:
    """Return the folder that a file lies in, None where its name has none."""
    return PurePosixPath(name).parent.name or None


def described_items(items: Sequence[Item]) -> list:
    """Json value that changes with everything in some items; mask files count by name, size and key."""

    def plain(raw: Mapping) -> dict:
        mask, entry = raw.get("segmentation"), {key: value for key, value in raw.items() if key != "where"}
        if isinstance(mask, MaskFile):
            path = Path(mask.path)
            entry["segmentation"] = [path.name, path.stat().st_size, repr(mask.key)]
        return entry

    return [[item.file_name, item.width, item.height, item.label, [plain(raw) for raw in item.raw]] for item in items]
