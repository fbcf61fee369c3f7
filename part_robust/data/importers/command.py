"""The commands of the importers: one set of flags, and the reader that each format takes."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from part_robust.data.importers.class_rule import read_class_rule
from part_robust.data.importers.classes import CLASS_FROM, ClassSource, CsvClasses, class_source
from part_robust.data.importers.coco import coco_contents, read_coco
from part_robust.data.importers.cvat_xml import read_cvat_xml
from part_robust.data.importers.datumaro import read_datumaro
from part_robust.data.importers.files import IMAGE_ENDINGS
from part_robust.data.importers.folders import read_folders
from part_robust.data.importers.items import DIVIDE, Contents, Source, by_split
from part_robust.data.importers.label_studio import is_label_studio, read_label_studio
from part_robust.data.importers.labelme import read_labelme
from part_robust.data.importers.output import Style
from part_robust.data.importers.part_imagenet_pp import read_part_imagenet_pp
from part_robust.data.importers.pascal_part import image_folder, read_pascal_part
from part_robust.data.importers.report import REASONS, ImportCounts
from part_robust.data.importers.run import run_import
from part_robust.data.importers.samples import ImportSettings
from part_robust.data.importers.yolo import read_yolo
from part_robust.data.part_json import parse_json
from part_robust.data.preparation.pipeline import default_workers

# format: (where its class is by default, what the help says)
_FORMATS = {
    "cvat": ("supercategory", "CVAT: annotations.xml (CVAT for images), or its COCO json"),
    "label-studio": ("folder", "Label Studio: its JSON, or its COCO json"),
    "labelme": ("tag", "LabelMe: a folder with one json for each image"),
    "datumaro": ("tag", "Datumaro: annotations/<subset>.json"),
    "yolo": ("folder", "YOLO segmentation or detection: data.yaml"),
    "roboflow": ("folder", "Roboflow's COCO export: train/, valid/, test/ with _annotations.coco.json"),
    "folders": ("tag", "images/<class>/ and masks/<class>/ label maps"),
    "pascal-part": ("tag", "Annotations_Part/*.mat and JPEGImages/"),
    "part-imagenet-pp": ("tag", "PartImageNet++: json/<wnid>.json"),
}
_ROBOFLOW = {"train": "train", "valid": "val", "val": "val", "validation": "val", "test": "test"}
_ROBOFLOW_JSON = "_annotations.coco.json"


def add_common_options(parser: argparse.ArgumentParser, class_parts: str) -> None:
    """The options that every import has.

    Args:
        parser: receives them.
        class_parts: default of --class-parts.
    """
    defaults = ImportSettings()
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder to write")
    parser.add_argument("--classes", nargs="+", default=[], metavar="NAME", help="all classes, in their order")
    parser.add_argument("--skip-unclassed", action="store_true", help="leave out images that the class table has not")
    parser.add_argument(
        "--split-fractions", "--ratios", nargs=3, default=defaults.fractions, metavar=("TRAIN", "VAL", "TEST"),
        help="shares that sum to 1 (default 0.8 0.1 0.1)",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=defaults.seed, help="another seed divides differently (default 0)")
    parser.add_argument(
        "--group-by", default=defaults.group_by, metavar="HOW",
        help="what never lies in two splits besides equal pictures: content (default, nothing else), near (pictures "
        "that look alike), folder, or a regular expression whose first group in the file name is the key",
    )  # fmt: skip
    parser.add_argument(
        "--class-parts", default=class_parts, metavar="HOW",
        help="parts of a class: training (those annotated in its training images), used (in any of its images), "
        "supercategory, a json or yaml file {class: [part, ...]}, or auto (supercategory where each one is a class, "
        f"else training); default {class_parts}",
    )  # fmt: skip
    parser.add_argument(
        "--class-part-share", type=float, default=defaults.class_part_share, metavar="SHARE",
        help="share of a class's training images a part must be annotated in to be one of its parts (default: any)",
    )  # fmt: skip
    parser.add_argument(
        "--crowd", choices=["part", "ignore"], default=defaults.crowd,
        help="iscrowd 1 is an ordinary part (default), or its pixels count nowhere",
    )  # fmt: skip
    parser.add_argument(
        "--unannotated", choices=["none", "full"], default=defaults.unannotated,
        help="images without annotations: their parts are unknown (none, default), or they have none (full)",
    )  # fmt: skip
    parser.add_argument("--skip-missing", action="store_true", help="leave out images whose file is missing")
    parser.add_argument("--copy-images", action="store_true", help="copy the images below --output instead")
    parser.add_argument("--workers", type=int, default=default_workers(), help="processes (default: all cores)")
    parser.add_argument(
        "--force", "--restart", action="store_true",
        help="replace split files that something else wrote, and remove those of an earlier import",
    )  # fmt: skip


def add_class_options(parser: argparse.ArgumentParser, required: bool, default: str = "") -> None:
    """Add the options that say where the class of an image is."""
    classes = parser.add_mutually_exclusive_group(required=required)
    classes.add_argument("--class-csv", type=Path, metavar="FILE", help="table with the columns file_name and class")
    classes.add_argument("--class-rule", type=Path, metavar="FILE", help="the class follows from the annotated parts")
    classes.add_argument("--class-from", metavar="HOW", help=f"{CLASS_FROM}{default and f' (default {default})'}")


def settings_of(args: argparse.Namespace) -> ImportSettings:
    """Return the settings that the options of the command line give."""
    return ImportSettings(
        fractions=tuple(args.split_fractions),
        seed=args.seed,
        group_by=args.group_by,
        class_names=tuple(args.classes),
        class_parts=args.class_parts,
        class_part_share=args.class_part_share,
        crowd=args.crowd,
        unannotated=args.unannotated,
        skip_missing=args.skip_missing,
        copy_images=args.copy_images,
    )


def class_source_of(args: argparse.Namespace, tally: ImportCounts, default: str) -> ClassSource:
    """The class source that the options name, else the format's."""
    if args.class_csv:
        return CsvClasses(args.class_csv, tally, args.skip_unclassed)
    if args.class_rule:
        return read_class_rule(args.class_rule)
    return class_source(args.class_from or default, tally, args.skip_unclassed)


def report_lines(report: Mapping, output: Path) -> list[str]:
    """Return the lines that a command prints: counts of every split, and of what was skipped, repaired and noticed."""
    lines = []
    for split, counts in report["images"].items():
        shown = ", ".join(f"{name} {count}" for name, count in counts.items())
        lines.append(f"{split}: {sum(counts.values())} images ({shown}), {report['annotations'][split]} parts")
    for kind in ("skipped", "repaired", "noted"):
        lines += [f"{kind}: {entry['count']} {REASONS[reason][1]}" for reason, entry in report[kind].items()]
    return [*lines, f"image root: {output / report['image_root']}", f"report: {output / 'report.md'}"]


def build_parser(description: str) -> argparse.ArgumentParser:
    """The parser of datasets/import_parts.py."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    formats = parser.add_subparsers(dest="format", required=True)
    for name, (default, text) in _FORMATS.items():
        options = formats.add_parser(name, help=text, description=text)
        add_common_options(options, "used")
        add_class_options(options, required=False, default=default)
        if name in ("cvat", "label-studio", "datumaro"):
            options.add_argument("--json", "--file", type=Path, required=True, metavar="FILE", help="exported file")
            options.add_argument(
                "--images", type=Path, required=True, help="folder that its file names are relative to"
            )
        elif name == "yolo":
            options.add_argument("--yaml", type=Path, required=True, metavar="FILE", help="data.yaml")
        else:
            options.add_argument("--source", type=Path, required=True, metavar="DIR", help="folder of the data set")
        if name == "folders":
            options.add_argument("--names", type=Path, required=True, help="csv: label,name or red,green,blue,name")
            options.add_argument("--background", type=int, default=0, help="label of the background (default 0)")
        if name == "labelme":
            options.add_argument("--images", type=Path, help="image root (default: the same folder)")
        if name == "part-imagenet-pp":
            options.add_argument("--images", type=Path, required=True, help="ImageNet's train/ or the authors' img/")
    return parser


def run_command(args: argparse.Namespace) -> list[str]:
    """Imports what the parsed arguments of datasets/import_parts.py say; returns the lines to print.

    Raises:
        OSError, ValueError, RuntimeError: what the user can correct, in one sentence.
    """
    tally = ImportCounts()
    default = _FORMATS[args.format][0]
    if args.format in ("pascal-part", "part-imagenet-pp"):
        wanted, args.classes = tuple(args.classes), []
        found = [_read_classes(args, wanted, tally)]
    elif args.format == "yolo":
        found = read_yolo(args.yaml, tally)
    elif args.format == "roboflow":
        found = _read_roboflow(args.source, tally)
    else:
        contents, native = _read_one(args, tally)
        default = "tag" if native else default
        found = by_split(*contents)
    settings = settings_of(args)
    if settings.group_by not in ("content", "near", "folder") and not _has_group(settings.group_by):
        settings = ImportSettings(**{**vars(settings), "group_by": f"({settings.group_by})"})
    classes = class_source_of(args, tally, default)
    sources, contents_of = [source for source, _ in found], [contents for _, contents in found]
    style = Style("import", f"Import from {args.format}", division="hash", masks="rle")
    report = run_import(sources, contents_of, args.output, classes, settings, tally, style, args.force, args.workers)
    return report_lines(report, args.output)


def _has_group(pattern: str) -> bool:
    try:
        return re.compile(pattern).groups > 0
    except re.error:
        return True  # complained about later


def _read_classes(args: argparse.Namespace, wanted: Sequence[str], tally: ImportCounts) -> tuple[Source, Contents]:
    if args.format == "pascal-part":
        contents = read_pascal_part(args.source, tuple(wanted), tally)
        return Source(args.source, image_folder(args.source)), contents
    return Source(args.source, args.images), read_part_imagenet_pp(args.source, wanted, tally)


def _read_one(args: argparse.Namespace, tally: ImportCounts) -> tuple[tuple[Source, Contents], bool]:
    """Source and contents, and whether the file is the tool's own, with the class inside."""
    if args.format == "folders":
        contents = read_folders(args.source, args.names, args.background, tally)
        return (Source(args.source, args.source / "images"), contents), True
    if args.format == "labelme":
        images = args.images or args.source
        return (Source(args.source, images), read_labelme(args.source, images, tally)), True
    if not args.images.is_dir():
        raise FileNotFoundError(
            f"--images {args.images} is not a folder: name the one that the file names are relative to"
        )
    source = Source(args.json, args.images)
    if args.format == "datumaro":
        return (source, read_datumaro(args.json, tally)), True
    if args.format == "cvat" and args.json.suffix.lower() == ".xml":
        return (source, read_cvat_xml(args.json, tally)), True
    if args.format == "label-studio" and is_label_studio(data := parse_json(args.json)):
        return (source, read_label_studio(args.json, data, tally)), True
    if args.format == "label-studio" and isinstance(data, list):
        raise ValueError(
            f'{args.json} is not a list of tasks: export the project as "JSON", not as "JSON-MIN", or as COCO'
        )
    return (source, coco_contents(args.json, read_coco(args.json), tally, twins="prefix")), False


def _read_roboflow(folder: Path, tally: ImportCounts) -> list[tuple[Source, Contents]]:
    found = []
    for name, split in _ROBOFLOW.items():
        path = folder / name / _ROBOFLOW_JSON
        if path.is_file():
            source = Source(path, path.parent, split)
            found.append((source, coco_contents(path, read_coco(path), tally)))
        elif path.parent.is_dir() and any(entry.suffix.lower() in IMAGE_ENDINGS for entry in path.parent.iterdir()):
            raise FileNotFoundError(f"{path.parent} has images and no {_ROBOFLOW_JSON}: add it, or remove the folder")
    others = sorted(path.parent for path in folder.glob(f"*/{_ROBOFLOW_JSON}") if path.parent.name not in _ROBOFLOW)
    if others:
        raise ValueError(f"{others[0]} is none of the folders train, valid and test: rename or remove it")
    if not found:
        raise FileNotFoundError(f"{folder} has no train/{_ROBOFLOW_JSON}: name the folder of Roboflow's COCO export")
    if len(found) == 1:
        source, contents = found[0]
        found = [(Source(source.json_file, source.image_root, DIVIDE), contents)]
    return found
