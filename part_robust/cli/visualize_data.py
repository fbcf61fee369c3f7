"""Draws images of a registered data set with their part masks and class names.

part-robust visualize-data --config-file part_shapes/resnet50.yaml --output output/data.jpg
part-robust visualize-data --config-file ... --source dataloader     # after the training crop and flip
part-robust visualize-data --config-file ... --distribution          # images per class in each split
"""

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from detectron2.data import DatasetCatalog

from part_robust import load_config
from part_robust.data import PartDatasetMapper, get_taxonomy
from part_robust.data.colour_jitter import jittered
from part_robust.utils.errors import PREPARATION, user_errors
from part_robust.visualize import (
    Panel,
    check_picture,
    legend_patches,
    overlay_parts,
    save_class_distribution,
    save_grid,
)


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", help="says which data set and which transforms")
    parser.add_argument("--dataset", help="name of a registered data set; default: the first of DATASETS.TRAIN")
    parser.add_argument("--source", choices=["annotation", "dataloader"], default="annotation")
    parser.add_argument(
        "--distribution", action="store_true", help="draw the images per class of --dataset, or of all splits"
    )
    parser.add_argument("--count", type=int, default=12, help="images to draw, spread evenly over the data set")
    parser.add_argument("--output", default="output/data.jpg", help="PNG or JPEG to write")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs that change the config")
    return parser.parse_args(arguments)


def draw_distribution(names: list[str], output: str) -> Path:
    """Bar chart of the images per class of some registered data sets with the same classes."""
    counts = {}
    for name in dict.fromkeys(names):
        of_class = Counter(record["class_id"] for record in DatasetCatalog.get(name))
        counts[name] = [of_class[index] for index in range(get_taxonomy(name).num_classes)]
    return save_class_distribution(counts, get_taxonomy(names[0]).class_names, output)


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse_arguments(arguments)
    with user_errors(*PREPARATION):
        draw(args)


def draw(args: argparse.Namespace) -> None:
    """Draws what the arguments name, and prints the file.

    Raises:
        OSError, KeyError, ValueError: the config or the data are not as they should be.
    """
    check_picture(args.output, args.count)
    # The data set that is drawn says the numbers of classes and parts.
    cfg = load_config(args.config_file, ["DATASETS.TRAIN", (args.dataset,), *args.opts] if args.dataset else args.opts)
    if args.distribution:
        names = [args.dataset] if args.dataset else [*cfg.DATASETS.TRAIN, *cfg.DATASETS.VAL, *cfg.DATASETS.TEST]
        print(draw_distribution(names, args.output))
        return
    name = args.dataset or cfg.DATASETS.TRAIN[0]
    taxonomy = get_taxonomy(name)
    records = DatasetCatalog.get(name)
    records = records[:: max(len(records) // args.count, 1)][: args.count]
    mapper = PartDatasetMapper(cfg, is_train=args.source == "dataloader", dataset_name=name)
    if args.source == "annotation":
        mapper = PartDatasetMapper(
            augmentations=[], num_parts=taxonomy.num_parts, ignore_label=taxonomy.ignore_label,
            masks_from=cfg.INPUT.PART_MASKS,
        )  # fmt: skip
    panels, labels = [], []
    for record in records:
        item = mapper(record)
        if "colours" in item:
            (item,) = jittered([item], torch.device("cpu"))
        image, label_map = item["image"].permute(1, 2, 0).numpy(), item["sem_seg"].numpy()
        labels.append(label_map)
        title = taxonomy.class_names[item["class_id"]]
        if item["part_supervision"] != "full":
            title += f" (parts: {item['part_supervision']})"
        panels.append([Panel(image, title), Panel(overlay_parts(image, label_map, taxonomy.num_parts))])
    rows = [sum(panels[start : start + 3], []) for start in range(0, len(panels), 3)]
    print(save_grid(rows, args.output, legend_patches(labels, taxonomy.part_names)))
