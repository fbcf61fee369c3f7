"""From the items of one source to samples: its images found and decoded, its parts cleaned, its classes named."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from part_robust.data.importers.classes import ClassSource
from part_robust.data.importers.clean import clean_item
from part_robust.data.importers.files import BROKEN_PICTURE, find_files
from part_robust.data.importers.items import Contents, Item, Source
from part_robust.data.importers.numbers import as_number
from part_robust.data.importers.report import ImportCounts
from part_robust.data.importers.splits import Picture, read_picture
from part_robust.data.preparation.parallel import in_parallel

SPLITS = ("train", "val", "test")
_PER_WORKER = 64  # images for which starting another process pays


@dataclass(frozen=True)
class ImportSettings:
    """Settings of an import.

    `fractions` are the shares of train, val and test for sources whose split is DIVIDE.
    """

    fractions: tuple[str, str, str] = ("0.8", "0.1", "0.1")
    seed: int = 0
    group_by: str = "content"  # or "near", "folder", a regular expression with a group
    class_names: tuple[str, ...] = ()  # fixes the classes and their order; default: sorted
    class_parts: str = "auto"  # or "training", "supercategory", "used", a file
    class_part_share: float = 0.0  # a part needs this share of a class's training images to belong to it
    crowd: str = "part"  # what iscrowd 1 means: "part" or "ignore"
    unannotated: str = "none"  # part_supervision of images without any part: "none" or "full"
    skip_missing: bool = False  # leave missing images out instead of failing
    copy_images: bool = False


@dataclass
class ImportedImage:
    """One image on its way through the import."""

    image: Item
    source: Source
    path: Path
    name: str  # relative to the common image root
    split: str
    picture: Picture
    label: str
    group: int = 0

    @property
    def key(self) -> str:
        """Unique name of the image in the result."""
        return self.image.key or self.name


def read_samples(
    source: Source,
    contents: Contents,
    root: Path,
    class_source: ClassSource,
    needs_parts: bool,
    settings: ImportSettings,
    tally: ImportCounts,
    workers: int = 1,
) -> list[ImportedImage]:
    """The usable images of one source, in the order of its items; split and group still to be set.

    Args:
        source: which files.
        contents: what its reader found.
        root: folder that contains all image roots; names of samples are relative to it.
        class_source: names the classes.
        needs_parts: whether the model needs parts.
        settings: see `ImportSettings`.
        tally: receives what was repaired or left out.
        workers: processes that decode images; the result does not depend on it.

    Raises:
        FileNotFoundError: images are missing, and may not be.
        ValueError: the class source complains.
    """
    items = find_files(contents.items, source.image_root, source.json_file, settings.skip_missing, tally)
    # Tables and folders are read before hours of decoding; only a rule has to wait for the parts.
    labels = None if needs_parts else class_source(items)
    prefix = PurePosixPath(source.image_root.resolve().relative_to(root).as_posix())
    paths = {item.file_name: source.image_root / item.found for item in items}
    cleaned: dict[str, tuple[Item, Picture]] = {}
    turned = False  # whether parts of any image of this source were drawn upright, in spite of the size that it says
    for item, picture, counted in _cleaned(items, paths, settings.crowd, source, workers):
        tally.extend(counted)
        turned |= any(reason == "turned_size" for reason, _ in counted)
        if picture is not None:
            cleaned[item.file_name] = item, picture
    for name in [name for name, (item, _) in cleaned.items() if turned and item.fits_both]:
        tally.add("ambiguous_rotation", name)
        del cleaned[name]
    if labels is None:
        kept = [item for item in items if item.file_name in cleaned]
        by_name = dict(
            zip([i.file_name for i in kept], class_source([cleaned[i.file_name][0] for i in kept]), strict=True)
        )
        labels = [by_name.get(item.file_name) for item in items]
    samples = []
    for named, label in zip(items, labels, strict=True):
        if named.file_name not in cleaned:
            continue
        item, picture = cleaned[named.file_name]
        if label is None:
            tally.add("no_class", f"{item.file_name} ({', '.join(sorted(item.part_names)) or 'no parts'})")
            continue
        if not item.parts and not item.ignore:
            tally.add("image_without_parts", item.file_name)
        if item.lost:
            tally.add("image_with_lost_parts", item.file_name)
        name = str(prefix / item.found)
        samples.append(ImportedImage(item, source, paths[item.file_name], name, source.split, picture, label))
    return samples


def _cleaned(
    items: Sequence[Item], paths: Mapping[str, Path], crowd: str, source: Source, workers: int
) -> Iterable[tuple[Item, Picture | None, list]]:
    """The items with their pictures, in their order, and what was counted for each."""
    process = partial(read_item, crowd=crowd)
    units = [(item.file_name, (item, paths[item.file_name])) for item in items]
    bar = tqdm(total=len(units), desc=f"reading {source.json_file.name}", unit="image", disable=None)
    results: dict[str, tuple] = {}
    with bar:
        for name, result in in_parallel(process, iter(units), min(workers, len(units) // _PER_WORKER)):
            results[name] = result
            bar.update()
    return [results[item.file_name] for item in items]


def read_item(unit: tuple[Item, Path], crowd: str) -> tuple[Item, Picture | None, list[tuple[str, str]]]:
    """One item with its picture and its parts cleaned; None and the reason where the image cannot be used."""
    item, path = unit
    tally = ImportCounts()
    picture = _read_picture(item, path, tally)
    if picture is not None:
        clean_item(item, crowd, tally)
        item.raw = []
    return item, picture, tally.events


def _read_picture(item: Item, path: Path, tally: ImportCounts) -> Picture | None:
    """Decodes the file and checks or adds the size; None where the image cannot be used."""
    try:
        picture = read_picture(path)
    except BROKEN_PICTURE as error:
        tally.add("unreadable_image", f"{item.file_name}: {error}".replace(str(path), item.file_name))
        return None
    stored = (picture.width, picture.height)
    turned = stored[::-1] if picture.turned else stored
    if picture.rotated:
        tally.add("exif_orientation", item.file_name)
    if item.width < 1 or item.height < 1:
        # What a viewer shows is what people annotate.
        item.width, item.height = turned
        if item.has_size:
            tally.add("image_size_added", item.file_name)
    if (item.width, item.height) not in (stored, turned):
        tally.add("size_mismatch", f"{item.file_name}: {stored}, the json says {(item.width, item.height)}")
        return None
    if picture.rotated and turned == stored and (item.raw or item.lost):
        tally.add("ambiguous_rotation", item.file_name)
        return None
    if turned != stored and (item.width, item.height) == stored and item.raw:
        fits_stored, fits_turned = _fits(item, stored), _fits(item, turned)
        item.fits_both = fits_stored and fits_turned
        if fits_turned and not fits_stored:  # drawn upright
            item.width, item.height = turned
            tally.add("turned_size", item.file_name)
    return picture


def _fits(item: Item, size: tuple[int, int]) -> bool:
    """Return whether all parts lie in a frame of this width and height; those without a place do."""
    ends = [end for raw in item.raw if (end := _end(raw)) is not None]
    return all(right <= size[0] + 1 and bottom <= size[1] + 1 for right, bottom in ends)


def _end(raw: Mapping) -> tuple[float, float] | None:
    """Largest x and y of a part's polygons, else of its box; of a run-length code its frame."""
    segmentation, box = raw.get("segmentation"), raw.get("bbox")
    if isinstance(segmentation, Mapping):
        size = segmentation.get("size")
        height, width = map(as_number, size) if isinstance(size, list) and len(size) == 2 else (None, None)
        return None if height is None or width is None else (width, height)
    if isinstance(segmentation, list) and segmentation and all(isinstance(polygon, list) for polygon in segmentation):
        values = [[as_number(value) for value in polygon] for polygon in segmentation]
        xs = [x for polygon in values for x in polygon[0::2] if x is not None]
        ys = [y for polygon in values for y in polygon[1::2] if y is not None]
        if xs and ys:
            return max(xs), max(ys)
    if isinstance(box, list) and len(box) == 4:
        x, y, width, height = map(as_number, box)
        if x is not None and y is not None and width is not None and height is not None:
            return x + width, y + height
    return None
