"""Reads one foreign COCO file with its images: what is usable of it, and the class of each image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from PIL import Image
from tqdm import tqdm

from part_robust.data.importers.classes import ClassSource, shown
from part_robust.data.importers.clean import ForeignImage, clean_annotations, read_images
from part_robust.data.importers.report import Tally
from part_robust.data.importers.splits import Picture, read_picture

DIVIDE = "fractions"  # split name of the sources whose images the fractions divide
SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Source:
    """One COCO json: its file, the folder its file names are relative to, and its split (or DIVIDE)."""

    json_file: Path
    image_root: Path
    split: str = DIVIDE

    @property
    def title(self) -> str:
        """File and folder, which tell sources apart and are the same on every machine."""
        return "/".join(self.json_file.resolve().parts[-2:])


@dataclass(frozen=True)
class ImportSettings:
    """How to import. `fractions` are the shares of train, val and test for sources whose split is DIVIDE."""

    fractions: tuple[str, str, str] = ("0.8", "0.1", "0.1")
    seed: int = 0
    group_by: str = "content"  # or "near", "folder", a regular expression with a group
    class_names: tuple[str, ...] = ()  # fixes the classes and their order; default: sorted
    class_parts: str = "auto"  # or "training", "supercategory", a file
    class_part_share: float = 0.0  # a part needs this share of a class's training images to belong to it
    crowd: str = "part"  # what iscrowd 1 means: "part" or "ignore"
    unannotated: str = "none"  # part_supervision of images without any part: "none" or "full"
    skip_missing: bool = False  # leave missing images out instead of failing
    copy_images: bool = False


@dataclass
class Sample:
    """One image on its way through the import."""

    image: ForeignImage
    source: Source
    path: Path
    name: str  # relative to the common image root
    split: str
    picture: Picture
    label: str
    group: int = 0


def read_source(
    source: Source,
    data: Mapping,
    root: Path,
    class_source: ClassSource,
    needs_parts: bool,
    settings: ImportSettings,
    tally: Tally,
) -> list[Sample]:
    """The usable images of one source, sorted by file name; split and group still to be set.

    Args:
        source: which files.
        data: the parsed json.
        root: folder above all image roots; names of samples are relative to it.
        class_source: names the classes.
        needs_parts: whether it looks at the parts.
        settings: see `ImportSettings`.
        tally: receives what was repaired or left out.

    Raises:
        FileNotFoundError: images are missing, and may not be.
        ValueError: a file name leaves the image root, or the class source complains.
    """
    images = read_images(source.json_file, data, tally)
    _require_inside(source, images)
    missing = [image for image in images if not (source.image_root / image.file_name).is_file()]
    if missing and not settings.skip_missing:
        raise FileNotFoundError(
            f"{len(missing)} of {len(images)} images of {source.json_file} are not in --image-root "
            f"{source.image_root}, first: {shown([image.file_name for image in missing])}. Is it the folder that the "
            "json's file_name is relative to? To leave missing images out add --skip-missing"
        )
    for image in missing:
        tally.add("missing_image", image.file_name)
    gone = {image.file_name for image in missing}
    images = [image for image in images if image.file_name not in gone]
    # Tables and folders are asked before hours of decoding; only a rule has to wait for the parts.
    labels = None if needs_parts else class_source([image.file_name for image in images], [set()] * len(images))
    prefix = PurePosixPath(source.image_root.resolve().relative_to(root).as_posix())
    pictures: dict[str, Picture] = {}
    for image in tqdm(images, desc=f"reading {source.json_file.name}", unit="image", disable=None):
        picture = _read_picture(image, source.image_root / image.file_name, tally)
        if picture is not None:
            pictures[image.file_name] = picture
            clean_annotations(image, settings.crowd, tally)
    if labels is None:
        parts = [{part["part"] for part in image.parts} for image in images]
        labels = class_source([image.file_name for image in images], parts)
    samples = []
    for image, label in zip(images, labels, strict=True):
        if image.file_name not in pictures:
            continue
        if label is None:
            found = ", ".join(sorted({part["part"] for part in image.parts}))
            tally.add("no_class", f"{image.file_name} ({found or 'no parts'})")
            continue
        if not image.parts and not image.ignore:
            tally.add("image_without_parts", image.file_name)
        samples.append(
            Sample(
                image=image,
                source=source,
                path=source.image_root / image.file_name,
                name=str(prefix / image.file_name),
                split=source.split,
                picture=pictures[image.file_name],
                label=label,
            )
        )
    return samples


def _require_inside(source: Source, images: Sequence[ForeignImage]) -> None:
    for image in images:
        path = PurePosixPath(image.file_name)
        if not image.file_name or path.is_absolute() or ".." in path.parts:
            raise ValueError(
                f"{source.json_file}: file_name {image.file_name!r} must be relative to --image-root and stay inside it"
            )


def _read_picture(image: ForeignImage, path: Path, tally: Tally) -> Picture | None:
    """Decodes the file and checks or adds the size; None where the image cannot be used."""
    try:
        picture = read_picture(path)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        tally.add("unreadable_image", f"{image.file_name}: {error}".replace(str(path), image.file_name))
        return None
    stored = (picture.width, picture.height)
    turned = stored[::-1] if picture.turned else stored
    if picture.rotated:
        tally.add("exif_orientation", image.file_name)
    if image.width < 1 or image.height < 1:
        # What a viewer shows is what people annotate.
        image.width, image.height = turned
        tally.add("image_size_added", image.file_name)
    if (image.width, image.height) not in (stored, turned):
        tally.add("size_mismatch", f"{image.file_name}: {stored}, the json says {(image.width, image.height)}")
        return None
    return picture
