"""Where PACO's files lie: every layout that the public code bases use, and what to do where something is missing.

Roots: the annotation jsons, the COCO images (`train2017/`, `val2017/`), the Ego4D frames.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from part_robust.data.preparation.paco_names import ARCHIVES
from part_robust.data.preparation.pipeline import file_hash

# Files in the order of thesis section 3.2, which its random split depends on.
FILES = (
    ("lvis", "train"),
    ("lvis", "val"),
    ("lvis", "test"),
    ("ego4d", "train"),
    ("ego4d", "val"),
    ("ego4d", "test"),
)
LICENCE_HINT = (
    "Ego4D frames need a signed licence (https://ego4ddataset.com, about two days), then: "
    "ego4d --output_directory X --version v1 --datasets paco_frames, and --ego4d-images X/v1/paco_frames. "
    "To prepare PACO without them: --sources lvis"
)
COCO_HINT = (
    "Unpack COCO's train2017.zip and val2017.zip side by side (http://images.cocodataset.org/zips/train2017.zip, "
    "val2017.zip) and name the folder that holds both with --coco-images. Partial copies: --allow-missing counts "
    "and skips what is not there"
)
# How the folder that the files of each source are looked for in is called, in the order of the search.
_ANNOTATION_FOLDERS = ("paco/annotations", "paco", "annotations", "")
_COCO_FOLDERS = ("coco", "coco/images", "lvis", "images", "")
_EGO4D_FOLDERS = ("paco/images", "ego4d", "ego4d/v1/paco_frames", "v1/paco_frames", "paco_frames", "paco/frames")


@dataclass(frozen=True)
class PacoRoots:
    """Folders to search, each in order.

    Attributes:
        annotations, coco, ego4d: candidates for the three roots.
    """

    annotations: tuple[Path, ...]
    coco: tuple[Path, ...]
    ego4d: tuple[Path, ...]


def search_roots(
    root: Path, annotations: Path | None = None, coco: Path | None = None, ego4d: Path | None = None
) -> PacoRoots:
    """Folders named by the user, else by PACO's environment variables, else the usual ones below `root`."""

    def candidates(given: Path | None, variable: str, folders: Sequence[str]) -> tuple[Path, ...]:
        if given is not None:
            return (given,)
        named = [Path(os.environ[variable])] if os.environ.get(variable) else []
        return (*named, *(root / folder for folder in folders))

    return PacoRoots(
        annotations=candidates(annotations, "PACO_ANNOTATION_ROOT", _ANNOTATION_FOLDERS),
        coco=candidates(coco, "COCO_IMAGE_ROOT", _COCO_FOLDERS),
        ego4d=candidates(ego4d, "PACO_IMAGE_ROOT", _EGO4D_FOLDERS),
    )


def find_annotation_files(roots: PacoRoots, wanted: Sequence[tuple[str, str]]) -> dict[tuple[str, str], Path]:
    """The json of each wanted (dataset, split).

    Raises:
        FileNotFoundError: names the missing ones, where they were looked for and how to get them.
    """
    found, missing = {}, []
    for dataset, split in wanted:
        name = f"paco_{dataset}_v1_{split}.json"
        places = [folder / sub / name for folder in roots.annotations for sub in ("", f"paco_{dataset}_v1")]
        path = next((place for place in places if place.is_file()), None)
        if path is None:
            missing.append(name)
        else:
            found[dataset, split] = path
    if missing:
        folders = ", ".join(str(folder) for folder in roots.annotations)
        archives = " and ".join(sorted({f"paco_{name.split('_')[1]}_v1.zip" for name in missing}))
        packed = [str(path) for path in find_archives(roots) if path.name in archives]
        remedy = f"Unpack {', '.join(packed)}" if packed else (
            f"Download {archives} from https://dl.fbaipublicfiles.com/paco/annotations/, unpack, and name the folder "
            "with --annotations"
        )  # fmt: skip
        if all("ego4d" in name for name in missing):
            withheld = any((folder / "paco_ego4d_v1_test_dev.json").is_file() for folder in roots.annotations)
            if withheld:
                remedy += ". The file paco_ego4d_v1_test_dev.json is the old test set, which has no parts"
            remedy += ". To prepare PACO without Ego4D: --sources lvis"
        raise FileNotFoundError(f"{', '.join(missing)} not found in {folders}. {remedy}")
    return found


def find_archives(roots: PacoRoots) -> list[Path]:
    """The downloaded zips that lie beside the annotations."""
    places = [folder / name for folder in roots.annotations for name in sorted(ARCHIVES)]
    return [path for path in dict.fromkeys(places) if path.is_file()]


def archive_state(path: Path) -> str:
    """Return what is known about a zip by its sha256."""
    digest = file_hash(path, "sha256")
    return ARCHIVES[path.name].get(digest, f"unknown, sha256 {digest}")


def image_roots(roots: PacoRoots, datasets: Sequence[str]) -> dict[str, Path]:
    """Folder of the images of each dataset: the first candidate that holds some.

    Raises:
        FileNotFoundError: no candidate does; says what to download.
    """
    result = {}
    for dataset in datasets:
        candidates, hint = (roots.coco, COCO_HINT) if dataset == "lvis" else (roots.ego4d, LICENCE_HINT)
        holds_images = _holds_coco if dataset == "lvis" else _holds_frames
        root = next((folder for folder in candidates if holds_images(folder)), None)
        if root is None:
            what = "COCO images (train2017/, val2017/)" if dataset == "lvis" else "Ego4D frames (*.jpeg)"
            looked = ", ".join(str(folder) for folder in candidates)
            jsons = [str(folder) for folder in candidates if any(folder.glob("*.json"))]
            only = f" ({jsons[0]} has only jsons)" if jsons else ""
            raise FileNotFoundError(f"no {what} in {looked}{only}. {hint}. Counts alone need no images: --dry-run")
        result[dataset] = root
    return result


def _holds_coco(folder: Path) -> bool:
    return (folder / "train2017").is_dir() or (folder / "val2017").is_dir()


def _holds_frames(folder: Path) -> bool:
    return folder.is_dir() and any(entry.name.endswith((".jpeg", ".jpg")) for entry in os.scandir(folder))
