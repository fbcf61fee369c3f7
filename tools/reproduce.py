#!/usr/bin/env python
"""Trains and evaluates every model of a table, and writes the table.

    python tools/reproduce.py part_shapes_deeplab
    python tools/reproduce.py part_shapes_deeplab --only deeplab_pixel --only resnet50 SOLVER.EPOCHS 1

Each model is trained on clean images, then goes on adversarially; both are evaluated clean and attacked. Interrupted,
it goes on where it was; runs that are finished are not repeated. KEY VALUE pairs change the config of every run.
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from tabulate import tabulate

from part_robust.data.part_shapes import make_part_shapes
from part_robust.engine.experiment import Phase, run_phase

ROOT = Path(__file__).resolve().parent.parent
DEEPLAB = {
    "deeplab_segmenter": "DeepLabv3+, parts only",
    "deeplab_downsampled": "Downsampled",
    "deeplab_bounding_box": "Bounding-Box",
    "deeplab_two_headed": "Two-Headed",
    "deeplab_pixel": "Pixel",
}
BASELINE = {"resnet50": "ResNet, no parts"}
DINO = {
    "dino_detector": "DINO, parts only",
    "dino_sequential": "DINO sequential",
    "dino_two_headed": "DINO two-headed",
}
# Of Tables 2.2 and 2.3 of the thesis; its two-headed rows are of six layers alone.
DINO_SIZES = {
    stem + size: title + row
    for stem, title in DINO.items()
    for size, row in {
        "": ", 6/6 layers, 900 queries",
        "_100q": ", 6/6 layers, 100 queries",
        "_1layer": ", 1/1 layer, 900 queries",
        "_1layer_100q": ", 1/1 layer, 100 queries",
    }.items()
    if not (stem == "dino_two_headed" and "1layer" in size)
}
MASK_DINO = {
    "mask_dino_segmenter": "Mask DINO, parts only",
    "mask_dino_simple_fixed_9layers": "Mask DINO Simple, fixed matrix, 9 layers",
    "mask_dino_simple_fixed_1layer": "Mask DINO Simple, fixed matrix, 1 layer",
    "mask_dino_simple_learned_9layers": "Mask DINO Simple, learned matrix, 9 layers",
    "mask_dino_simple_learned_1layer": "Mask DINO Simple, learned matrix, 1 layer",
}
# Of Table 3.3; c_seg = 0.5 is the fixed matrix of 9 layers.
C_SEG = {f"mask_dino_simple_c_seg_0{tenth}": f"Mask DINO Simple, c_seg 0.{tenth}" for tenth in (0, 3, 7, 9)}
# Table -> folder of configs, models, and the suffixes of their configs by kind of part supervision. The DeepLab rows of
# the thesis's Tables 2.1 to 2.3 are those of part_imagenet_deeplab under "boxes", Table 3.4's are in paco_deeplab.
TABLES = {
    "part_shapes_deeplab": ("part_shapes", BASELINE | DEEPLAB, {"masks": "", "boxes": "_boxes"}),
    "part_shapes_dino": ("part_shapes", DINO, {"boxes": ""}),
    "part_imagenet_deeplab": ("part_imagenet", BASELINE | DEEPLAB, {"masks": "", "boxes": "_boxes"}),
    "part_imagenet_dino": ("part_imagenet", DINO_SIZES, {"boxes": ""}),
    "part_shapes_mask_dino": ("part_shapes", MASK_DINO, {"masks": ""}),
    "paco_deeplab": ("paco", BASELINE | DEEPLAB, {"masks": ""}),
    "paco_mask_dino": ("paco", MASK_DINO | C_SEG, {"masks": ""}),
}
METRICS = {
    "acc.": ("classification", "accuracy"),
    "pixel acc.": ("part_seg", "pixel_accuracy"),
    "AP": ("part_box", "AP"),
    "AP50": ("part_box", "AP50"),
    "mask AP": ("part_mask", "AP"),
}


def runs(table: str, only: Sequence[str] = ()) -> list[tuple[list[str], str]]:
    """(first cells of the row, config file) of every run of a table, clean trainings before what goes on from them.

    Raises:
        ValueError: a name in `only` is none of the table's models.
    """
    folder, models, supervisions = TABLES[table]
    if unknown := set(only) - set(models):
        raise ValueError(f"{table} has no model {sorted(unknown)}, only {', '.join(models)}")
    result = []
    for model, title in models.items():
        # The baseline sees no parts, so its supervision makes no difference.
        for supervision, suffix in (supervisions if model not in BASELINE else {"none": ""}).items():
            for training, end in (("clean", ""), ("adversarial", "_adv")):
                if not only or model in only:
                    result.append(([title, supervision, training], f"configs/{folder}/{model}{suffix}{end}.yaml"))
    return result


def headers(record: dict) -> list[str]:
    """Titles of a table's columns; all its runs are under the same attacks."""
    return [
        "model",
        "supervision",
        "training",
        *(f"{m}, {on}" for m in METRICS for on in ("clean", *record["attacks"])),
    ]


def numbers(record: dict) -> list[float | None]:
    """Cells of a row: each metric on clean images and under each attack; None where a model has no such metric."""
    (tasks,) = record["results"].values()
    return [
        tasks.get(task + suffix, {}).get(metric)
        for task, metric in METRICS.values()
        for suffix in ("", *(f"_{attack}" for attack in record["attacks"]))
    ]


def without_empty(rows: Sequence[list], titles: Sequence[str]) -> tuple[list[list], list[str]]:
    """The table without columns that no row has a number for."""
    keep = [i for i in range(len(titles)) if any(row[i] is not None for row in rows)]
    return [[row[i] for i in keep] for row in rows], [titles[i] for i in keep]


def notes(cells: Sequence[str], record: dict) -> list[str]:
    """What must be known beside a row's numbers: images, attack, warnings."""
    ((dataset, tasks),) = record["results"].items()
    images = int(next(iter(tasks.values()))["num_images"])
    lines = [
        f"Percent, {images} images of {dataset}; attack {attack}: {settings}"
        for attack, settings in record["attacks"].items()
    ]
    lines += [f"{', '.join(cells)}: {sentence}" for sentence in record["warnings"].get(dataset, ())]
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=TABLES)
    parser.add_argument("--only", action="append", default=[], metavar="MODEL", help="this model; may be repeated")
    parser.add_argument("opts", nargs="*", help="KEY VALUE pairs for every run")
    args = parser.parse_intermixed_args(arguments)
    try:
        todo = runs(args.table, args.only)
    except ValueError as error:
        parser.error(str(error))
    os.chdir(ROOT)
    if args.table.startswith("part_shapes"):
        make_part_shapes(Path(os.environ.get("DETECTRON2_DATASETS", "datasets")) / "part_shapes")
    path = Path("output", "-".join([args.table, *args.only]) + ".md")
    path.parent.mkdir(exist_ok=True)
    rows: list[list] = []
    footnotes: dict[str, None] = {}  # in order, each once
    for cells, config in todo:
        record = run_phase(Phase(", ".join(cells), config, args.opts))
        rows.append([*cells, *numbers(record)])
        # After every run: an interrupted table is worth something too.
        table = tabulate(*without_empty(rows, headers(record)), tablefmt="github", floatfmt=".1f", missingval="-")
        footnotes.update(dict.fromkeys(notes(cells, record)))
        path.write_text("\n".join([table, "", *(f"- {line}" for line in footnotes), ""]))
    print(f"\n{path.read_text()}\ntable: {path}")


if __name__ == "__main__":
    main()
