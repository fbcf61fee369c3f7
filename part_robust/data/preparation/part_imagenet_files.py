"""PartImageNet on disk: finds annotations and images in every layout in circulation, unpacks what is still zipped.

OOD:  train.json val.json test.json + train.zip val.zip test.zip, or the folders <split>/<wnid>/ that they hold,
      also arranged as annotations/<split>.json + images/<split>/... or JPEGImages/<wnid>/
Seg:  annotations/<split>/<split>.json and <name>.png, images/<split>/<name>.JPEG, in a folder PartImageNet
"""

from __future__ import annotations

import logging
import os
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from part_robust.data.preparation.splits import SPLITS
from part_robust.utils.files import replacing, write_bytes

logger = logging.getLogger(__name__)

_IMAGE_ENDINGS = (".jpeg", ".jpg", ".png")
_JUNK = ("__MACOSX", ".DS_Store", ".preparation")


@dataclass(frozen=True)
class PartImageNetFiles:
    """Files that were found.

    Attributes:
        layout: "ood" or "seg".
        annotations: json of each split.
        images: path of every image by its bare file name; where a name lies in several places, the best one.
        label_maps: path of the PNG with part labels by image stem; seg only.
    """

    layout: str
    annotations: dict[str, Path]
    images: dict[str, Path]
    label_maps: dict[str, Path]


def find_part_imagenet(root: Path, images: Path | None = None) -> PartImageNetFiles:
    """Looks through `root`.

    Args:
        root: folder of the unpacked data set.
        images: another folder of images, for example ImageNet's train/.

    Raises:
        FileNotFoundError: no annotations; says what to download or unpack.
    """
    annotations, layout = _find_annotations(root)
    missing = [f"{split}.json" for split in SPLITS if split not in annotations]
    if missing:
        packed = [str(path) for path in _archives(root)]
        remedy = (
            f"Unpack {', '.join(packed)} with --unpack"
            if packed
            else "Download PartImageNet_OOD.zip or PartImageNet_Seg.zip from https://huggingface.co/datasets/turkeyju/"
            "PartImageNet and name its folder with --source"
        )
        raise FileNotFoundError(f"{', '.join(missing)} not found in {root}. {remedy}")
    found: dict[str, tuple[int, str, Path]] = {}
    label_maps = {}
    for folder in [root, *([images] if images is not None else [])]:
        for path in _walk(folder):
            if path.suffix.lower() == ".png":
                # annotations/<split>_whole/ holds object labels under the same names.
                if path.parent.parent.name == "annotations" and path.parent.name in SPLITS:
                    label_maps[path.stem] = path
                continue
            rank = (_priority(path), str(path), path)
            if path.name not in found or rank < found[path.name]:
                found[path.name] = rank
    return PartImageNetFiles(layout, annotations, {name: rank[2] for name, rank in found.items()}, label_maps)


def _find_annotations(root: Path) -> tuple[dict[str, Path], str]:
    places = (
        ("seg", "annotations/{split}/{split}.json"),
        ("ood", "{split}.json"),
        ("ood", "annotations/{split}.json"),
    )
    below = sorted(path for path in root.glob("*/") if path.is_dir() and path.name not in (*_JUNK, *SPLITS))
    usual = (root, root / "PartImageNet", root / "PartImageNet_OOD", root / "PartImageNet_Seg" / "PartImageNet")
    deeper = [folder for base in below for folder in (base, *sorted(base.glob("*/"))) if folder.name not in SPLITS]
    for base in dict.fromkeys((*usual, *deeper)):
        for layout, place in places:
            found = {split: base / place.format(split=split) for split in SPLITS}
            found = {split: path for split, path in found.items() if path.is_file()}
            if found:
                return found, layout
    return {}, ""


def _walk(root: Path) -> Iterator[Path]:
    """All image files below a folder; macOS's shadows of them left out."""
    for folder, folders, names in os.walk(root, followlinks=True):
        folders[:] = sorted(name for name in folders if name not in _JUNK)
        for name in sorted(names):
            if name.lower().endswith(_IMAGE_ENDINGS) and not name.startswith("._"):
                yield Path(folder, name)


def _priority(path: Path) -> int:
    """Order of the places for one file name, best first."""
    parents = [parent.name for parent in path.parents]
    wnid = path.name.split("_")[0]
    in_class = parents[0] == wnid
    split_at = parents[1] if in_class else parents[0]
    if split_at in SPLITS and "images" in parents:
        return 1 if in_class else 0
    if split_at in SPLITS:
        return 2 if in_class else 3
    return 4 if in_class and parents[1] == "JPEGImages" else 5


def _archives(root: Path) -> list[Path]:
    return sorted(path for path in root.glob("*.zip")) if root.is_dir() else []


def unpack(root: Path) -> int:
    """Unpacks all zips in `root` beside themselves, zips inside them too; what is there already stays.

    The archive's own folders are kept, shadows of macOS are left out, and each file appears whole or not at all, so an
    interrupted call can be repeated.

    Returns:
        Number of files written.

    Raises:
        ValueError: an archive is broken, or holds a name that points outside the folder.
    """
    written = 0
    todo = _archives(root)
    while todo:
        archive = todo.pop(0)
        try:
            with zipfile.ZipFile(archive) as file:
                entries = [entry for entry in file.infolist() if not entry.is_dir() and not _is_junk(entry.filename)]
                for entry in tqdm(entries, desc=f"unpacking {archive.name}", unit="file"):
                    path = _target(archive, entry.filename)
                    if not path.is_file() or path.stat().st_size != entry.file_size:
                        _extract(file, entry, path)
                        written += 1
                    if path.suffix == ".zip":
                        todo.append(path)
        except zipfile.BadZipFile as error:
            raise ValueError(f"{archive} is not a complete zip ({error}): download it again") from error
    return written


def _is_junk(name: str) -> bool:
    parts = PurePosixPath(name.replace("\\", "/")).parts
    return any(part in _JUNK or part.startswith("._") for part in parts)


def _target(archive: Path, name: str) -> Path:
    parts = PurePosixPath(name.replace("\\", "/"))
    if parts.is_absolute() or ".." in parts.parts:
        raise ValueError(f"{archive} holds the name {name!r}, which points outside its folder")
    # train.zip holds train/<wnid>/..., or <wnid>/... without the split.
    if archive.stem in SPLITS and parts.parts[0] != archive.stem:
        parts = PurePosixPath(archive.stem) / parts
    return archive.parent / parts


def _extract(file: zipfile.ZipFile, entry: zipfile.ZipInfo, path: Path) -> None:
    if entry.filename.endswith(".zip"):  # gigabytes: not through memory
        with replacing(path) as temporary, file.open(entry) as source, open(temporary, "wb") as target:
            while block := source.read(1 << 20):
                target.write(block)
    else:
        write_bytes(path, file.read(entry))
