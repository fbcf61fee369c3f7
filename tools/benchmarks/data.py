"""Times of loading: our training mapper beside detectron2's own on the same photographs."""

import argparse
import copy
import itertools
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from detectron2.data import DatasetMapper
from detectron2.data import transforms as T
from detectron2.data.build import trivial_batch_collator
from PIL import Image, ImageFilter
from pycocotools import mask as coco_mask
from torch.utils.data import DataLoader, IterableDataset
from torchvision.transforms import ColorJitter

from benchmarks.timing import CLOCKS, best_times
from part_robust.config import get_part_robust_cfg
from part_robust.data import PartDatasetMapper
from part_robust.data.augmentations import build_train_augmentations
from part_robust.data.colour_jitter import draw_colours, jittered
from part_robust.data.mixing import MixingMapper
from part_robust.data.packed_batch import PackedBatch
from part_robust.data.part_json import load_part_json
from part_robust.data.preparation.segmentation import part_annotation
from part_robust.data.taxonomy import PartTaxonomy

PARTS = 12
# Of each image one, so that its price shows.
AUGMENTATIONS = {
    "rotation": ["INPUT.ROTATION", 15.0],
    "RandAugment": ["INPUT.RAND_AUGMENT", (2, 9)],
    "erasing": ["INPUT.ERASING_PROB", 1.0],
    "CutMix of every image": ["INPUT.CUTMIX_PROB", 1.0],
    "MixUp of every image": ["INPUT.MIXUP_PROB", 1.0],
}
BATCHES = 10


class Mapped(IterableDataset):
    """Copies of the same mapped images for ever, so that a worker has little to do but to hand them over."""

    def __init__(self, images: list[dict]) -> None:
        self.images = images

    def __iter__(self) -> Iterator[dict]:
        return map(copy.deepcopy, itertools.cycle(self.images))


def data(args: argparse.Namespace) -> None:
    """Milliseconds for an image with its parts, the ratio to detectron2's DatasetMapper, and images per second."""
    with tempfile.TemporaryDirectory() as folder:
        json_file, root = _files(args, Path(folder))
        records, taxonomy = load_part_json(json_file, root)
        records = [record for record in records if record["annotations"]][: args.photos]
        cfg = get_part_robust_cfg()
        cfg.INPUT.SIZE = args.size
        ours = PartDatasetMapper(
            augmentations=build_train_augmentations(cfg), num_parts=taxonomy.num_parts,
            ignore_label=taxonomy.ignore_label,
        )  # fmt: skip
        masks = [annotation["segmentation"] for record in records for annotation in record["annotations"]]
        kind = "bitmask" if any(isinstance(mask, dict) for mask in masks) else "polygon"
        # detectron2's has no semantic labels, and its polygons cannot be cropped without shapely.
        sides = {"ours": all_of(ours, records)}
        if not any("crop_xyxy" in record for record in records):  # it reads whole files only
            sides |= {
                "detectron2, our geometry": all_of(
                    detectron2_mapper(build_train_augmentations(cfg), "bitmask"), encoded(records)
                ),
                f"detectron2, its own, {kind}": all_of(
                    detectron2_mapper([T.ResizeShortestEdge(args.size), T.RandomFlip()], kind), records
                ),
            }

        sides["decoding alone"] = decoding(records, 0)
        sides["decoding, JPEG draft mode"] = decoding(records, args.size)
        times = best_times(sides, args.repeats, torch.device("cpu"), CLOCKS[args.clock])
        side = f"{records[0]['width']} x {records[0]['height']}"
        count = len(records)
        print(f"{count} photographs (first {side}) at {args.size} pixels, {len(masks) / count:.1f} parts each")
        for name, time in times.items():
            ratio = f", ours is {times['ours'] / time:.2f} times that" if name.startswith("detectron2") else ""
            print(f"{name:36} {time / count:7.2f} ms an image{ratio}")
        print(f"images per second and core: {1000 * count / times['ours']:.0f}")
        mapped = [ours(record) for record in records]
        arrivals = {
            "one piece of memory": arriving(mapped, PackedBatch),
            "detectron2's collator": arriving(mapped, trivial_batch_collator),
        }
        arrived = best_times(arrivals, args.repeats, torch.device("cpu"), CLOCKS[args.clock])
        for name, time in arrived.items():
            ratio = f", ours is {arrived['one piece of memory'] / time:.2f} times that" if "collator" in name else ""
            print(f"batch of {count} from a worker, {name:22} {time / BATCHES:7.2f} ms{ratio}")
        changed, most = draft_difference(records, args.size)
        print(f"draft mode changes {changed:.0%} of the pixels, by up to {most} of 255")
        if args.augment:
            augmented(args, records, taxonomy)


def arriving(images: list[dict], collate: Callable[[list], list]) -> Callable[[], None]:
    """What receives batches of all images from a data-loading worker that has them in memory."""
    batches = iter(DataLoader(Mapped(images), batch_size=len(images), num_workers=1, collate_fn=collate))

    def run() -> None:
        for _ in range(BATCHES):
            next(batches)

    return run


def augmented(args: argparse.Namespace, records: list[dict], taxonomy: PartTaxonomy) -> None:
    """Prints what each augmentation adds to an image, and the colour jitter of a batch on --device."""
    sides = {}
    for name, opts in {"none": [], **AUGMENTATIONS}.items():
        cfg = get_part_robust_cfg(None, ["INPUT.SIZE", args.size, *opts])
        mapper = PartDatasetMapper(
            augmentations=build_train_augmentations(cfg), num_parts=taxonomy.num_parts,
            ignore_label=taxonomy.ignore_label,
        )  # fmt: skip
        sides[name] = all_of(MixingMapper.from_config(cfg, mapper, records, taxonomy.ignore_label), records)
    times = best_times(sides, args.repeats, torch.device("cpu"), CLOCKS[args.clock])
    for name, time in times.items():
        added = (time - times["none"]) / len(records)
        print(f"with {name:31} {time / len(records):7.2f} ms an image, {added:+.2f}")
    device, jitter = torch.device(args.device), ColorJitter(0.4, 0.4, 0.4, 0.1)
    batch = [{"image": mapper(record)["image"], "colours": draw_colours(jitter)} for record in records]
    sides = {"colours": lambda: jittered(batch, device)}
    (time,) = best_times(sides, args.repeats, device, CLOCKS[args.clock]).values()
    print(f"{f'colour jitter of a batch on {device}':36} {time / len(batch):7.2f} ms an image")


def decoding(records: list[dict], draft: int) -> Callable[[], None]:
    """What decodes the files; with `draft`, in the smallest size of JPEG's draft mode of at least that many pixels."""

    def run() -> None:
        for record in records:
            decoded(record, draft)

    return run


def decoded(record: dict, draft: int) -> Image.Image:
    with Image.open(record["file_name"]) as file:
        if draft:
            file.draft("RGB", (draft, draft))
        return file.convert("RGB")


def draft_difference(records: list[dict], size: int) -> tuple[float, int]:
    """Share of the pixels that differ at `size` x `size`, and the largest difference, with and without draft mode."""
    shrunken = (
        [
            np.asarray(decoded(record, draft).resize((size, size), Image.Resampling.BILINEAR), dtype=np.int16)
            for record in records
        ]
        for draft in (0, size)
    )
    whole, quick = (np.stack(images) for images in shrunken)
    difference = np.abs(whole - quick).max(axis=3)
    return float((difference > 0).mean()), int(difference.max())


def _files(args: argparse.Namespace, folder: Path) -> tuple[Path, Path]:
    """Part json and image root: the user's, or drawn ones."""
    if args.json:
        return args.json, args.image_root
    if args.window > args.side:
        raise SystemExit(f"--window must be at most --side {args.side}, got {args.window}")
    return draw(folder, args.photos, args.side, args.window)


def all_of(mapper: Callable[[dict], dict], records: list[dict]) -> Callable[[], None]:
    def run() -> None:
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002 (what detectron2's augmentations draw from)
        for record in records:
            mapper(record)

    return run


def detectron2_mapper(augmentations: list, kind: str) -> DatasetMapper:
    return DatasetMapper(
        is_train=True, augmentations=augmentations, image_format="RGB", use_instance_mask=True,
        instance_mask_format=kind, recompute_boxes=True,
    )  # fmt: skip


def encoded(records: list[dict]) -> list[dict]:
    """The records with polygons as run-length codes."""

    def rle(annotation: dict, record: dict) -> dict:
        mask, size = annotation["segmentation"], (record["height"], record["width"])
        if isinstance(mask, list):
            mask = coco_mask.merge(coco_mask.frPyObjects(mask, *size))
        return {**annotation, "segmentation": mask}

    return [{**r, "annotations": [rle(annotation, r) for annotation in r["annotations"]]} for r in records]


def draw(folder: Path, count: int, side: int, window: int = 0) -> tuple[Path, Path]:
    """Smooth pictures with as many parts as PACO's crops have, as JPEG, and their part json."""
    generator = np.random.default_rng(0)
    images, annotations = [], []
    for index in range(1, count + 1):
        noise = generator.integers(0, 256, (side, side, 3), dtype=np.uint8)
        picture = Image.fromarray(noise).filter(ImageFilter.GaussianBlur(3))
        picture.save(folder / f"{index}.jpg", quality=90)
        shown = window or side
        image = {"id": index, "file_name": f"{index}.jpg", "width": shown, "height": shown, "class_id": 1}
        if window:
            left, top = (int(place) for place in generator.integers(0, side - window + 1, 2))
            image["source"] = {"crop_xyxy": [left, top, left + window, top + window]}
        images.append(image)
        for _ in range(PARTS):
            rows, columns = np.ogrid[:shown, :shown]
            y, x = generator.integers(shown // 8, shown, 2)
            height, width = generator.integers(shown // 16, shown // 3, 2)
            mask = ((rows - y) / height) ** 2 + ((columns - x) / width) ** 2 < 1
            found = part_annotation(mask, int(generator.integers(1, PARTS + 1)))
            annotations.append({**found, "id": len(annotations) + 1, "image_id": index})
    categories = [{"id": number, "name": f"part {number}"} for number in range(1, PARTS + 1)]
    classes = [{"id": 1, "name": "object", "part_category_ids": [c["id"] for c in categories]}]
    content = {"images": images, "annotations": annotations, "categories": categories, "classes": classes}
    (folder / "parts.json").write_text(json.dumps(content))
    return folder / "parts.json", folder
