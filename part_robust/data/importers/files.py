"""Finds the image files behind the file names of foreign tools: web paths, drive letters, other Unicode spellings."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from PIL import Image

from part_robust.data.importers.class_rule import shown
from part_robust.data.importers.items import Item
from part_robust.data.importers.report import ImportCounts
from part_robust.data.part_json import folded_name

# Label Studio puts eight digits in front of the names of uploaded files.
_UPLOAD = re.compile(r"(^|/)[0-9a-f]{8}-(?=[^/]+$)")
# What Pillow raises for a picture that it cannot decode.
BROKEN_PICTURE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)
IMAGE_ENDINGS = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


class ImageFolder:
    """The files below an image root; every folder is listed once: network file systems are slow at look-ups."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._folders: dict[str, dict[str, str]] = {}

    def find(self, file_name: str) -> str | None:
        """The name of the file below the root that a tool's name means, None where there is none."""
        for name in _spellings(file_name, self.root):
            found = self._look_up(name)
            if found is not None:
                return found
        return None

    def _look_up(self, name: str) -> str | None:
        """The name as it is spelled on disk: another Unicode normal form or other capitals are the same file."""
        folder, entries = "", self._entries("")
        parts = PurePosixPath(name).parts
        for index, part in enumerate(parts):
            spelled = entries.get(part, entries.get(folded_name(part)))
            if spelled is None:
                return None
            folder = f"{folder}/{spelled}" if folder else spelled
            if index < len(parts) - 1:
                entries = self._entries(folder)
        return folder if (self.root / folder).is_file() else None

    def _entries(self, folder: str) -> dict[str, str]:
        if folder not in self._folders:
            path = self.root / folder
            names = sorted(entry.name for entry in path.iterdir()) if path.is_dir() else []
            self._folders[folder] = {folded_name(name): name for name in names} | {name: name for name in names}
        return self._folders[folder]


def _spellings(file_name: str, root: Path) -> Iterator[str]:
    """Relative names that a tool's name may mean, the likeliest first."""
    yield from _web_spellings(file_name, root)
    if _UPLOAD.search(file_name):
        original = _UPLOAD.sub(r"\1", file_name)
        yield from _web_spellings(original, root)
        yield PurePosixPath(original).name


def _web_spellings(file_name: str, root: Path) -> Iterator[str]:
    yield from _inside(file_name)
    path = PurePosixPath(file_name)
    if path.is_absolute() and path.is_relative_to(root.resolve().as_posix()):
        yield path.relative_to(root.resolve().as_posix()).as_posix()
    decoded = unquote(file_name)
    yield from _inside(decoded)
    # Label Studio's /data/local-files/?d=photos/1.jpg; a query at the end of a web address.
    address, _, query = decoded.partition("?")
    candidates = [query.removeprefix("d=")] if query.startswith("d=") else []
    candidates.append(address)
    for candidate in candidates:
        parts = [part for part in candidate.split("/") if part not in ("", ".", "..")]
        if not parts:
            continue
        foreign = candidate != file_name or candidate.startswith(("/", "../")) or "/../" in candidate or ":" in parts[0]
        if not foreign:
            continue  # a plain relative name means what it says
        for start in range(len(parts)):
            yield "/".join(parts[start:])


def _inside(name: str) -> Iterator[str]:
    path = PurePosixPath(name)
    if name and not path.is_absolute() and ".." not in path.parts:
        yield name


def find_files(
    items: Sequence[Item], root: Path, listed_in: Path, skip_missing: bool, tally: ImportCounts
) -> list[Item]:
    """Return the images that exist, and set their `found`.

    Args:
        items: images of one source.
        root: folder of the images.
        listed_in: the source, for messages.
        skip_missing: leave missing images out instead of raising.
        tally: receives missing images and names that had to be repaired.

    Raises:
        FileNotFoundError: images are missing.
        ValueError: two names mean one file.
    """
    folder, existing, missing = ImageFolder(root), [], []
    owners: dict[str, str] = {}
    for item in items:
        name = folder.find(item.file_name)
        if name is None:
            missing.append(item.file_name)
            continue
        if name in owners:
            both = f"{owners[name]!r} and {item.file_name!r} are both the file {name} in {root}"
            if owners[name] == item.file_name:
                both = f"{name} is listed twice, with different annotations"
            raise ValueError(f"{listed_in}: {both}: give each image its own file name, and list it once")
        owners[name] = item.file_name
        item.found = name
        existing.append(item)
        if name != item.file_name:
            tally.add("file_name_repaired", f"{item.file_name} is {name}")
    if missing and not skip_missing:
        raise FileNotFoundError(
            f"{len(missing)} of {len(items)} images of {listed_in} are not in --image-root {root}, first: "
            f"{shown(missing)}. {_where_it_lies(root, missing[0])}To leave missing images out add --skip-missing"
        )
    for name in missing:
        tally.add("missing_image", name)
    return existing


def _where_it_lies(root: Path, missing: str) -> str:
    """A hint where the first missing file is found a few folders below the root, or beside it."""
    name = glob.escape(PurePosixPath(missing).name)
    places = [(root, "*"), (root, "*/*"), (root, "*/*/*"), (root.parent, "*")] if name else []
    for place, level in places:
        for path in filter(Path.is_file, place.glob(f"{level}/{name}")):
            return f"{path} exists: name the folder that the file names are relative to. "
    return "Is it the folder that the json's file_name is relative to? "
