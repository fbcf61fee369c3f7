"""Report of what an import skipped, repaired and noticed: counted by reason, with examples, as json and as Markdown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from part_robust.utils.markdown import escape

EXAMPLES = 20  # kept per reason

# reason: (kind, sentence). A reason that is not here cannot be counted.
REASONS = {
    # images
    "no_class": ("skipped", "images that neither rule nor table gives a class"),
    "missing_image": ("skipped", "images whose file does not exist"),
    "unreadable_image": ("skipped", "images whose file cannot be decoded"),
    "size_mismatch": ("skipped", "images whose file has another size than the json says: their parts lie elsewhere"),
    "ambiguous_rotation": (
        "skipped",
        "images with an EXIF rotation whose parts may be drawn either way up; save them turned, without the tag",
    ),
    "unreadable_annotation": ("skipped", "annotation files that cannot be read"),
    "class_not_wanted": ("skipped", "images of a class that is not imported"),
    "duplicate_of_given_split": (
        "skipped",
        "images to divide that belong with an image of a given split: same picture or group",
    ),
    "duplicate_image_entry": ("repaired", "images listed more than once: their annotations are joined"),
    "image_id": ("repaired", "images whose id was not an integer from 1 on"),
    "image_size_added": ("repaired", "images without width and height: read from the file"),
    "backslash_in_file_name": ("repaired", "file names with back-slashes"),
    "file_name_repaired": ("repaired", "file names that mean a file with another spelling or folder"),
    "turned_size": ("repaired", "images whose parts fit the EXIF-turned frame only: width and height exchanged"),
    "image_with_lost_parts": ("noted", "images with parts that could not be read: part_supervision is partial"),
    "several_classes": ("noted", "images to which the file gives several classes: the first is taken"),
    "no_mask": ("noted", "images without a file with their parts"),
    "image_without_parts": ("noted", "images without any usable annotation"),
    "exif_orientation": ("noted", "images with an EXIF rotation (the loader follows the json's width and height)"),
    "duplicate_content": ("noted", "images with the pixels of an earlier one: never divided between splits"),
    "near_duplicate": ("noted", "images that look like an earlier one: kept together where the import divides"),
    "duplicate_with_other_class": ("noted", "images with the pixels of an earlier one but another class"),
    "duplicate_across_given_splits": ("noted", "images with the pixels of an image in another given split: a leak"),
    "origin_across_given_splits": (
        "noted",
        "images made of one picture in two given splits (Roboflow's augmented copies): a leak",
    ),
    "shape_unlike_training": (
        "noted",
        "images to evaluate that are not square as all training images are: if those were stretched (what is round "
        "looks narrow), use INPUT.TEST_TRANSFORM stretch",
    ),
    "table_row_without_image": ("noted", "rows of the class table that no image of the json has"),
    # categories
    "background_category": ("skipped", "categories that mean the background, which is not a part"),
    "root_category": ("skipped", "categories that are the root of the others (Roboflow's project name), not parts"),
    "category_id": ("repaired", "categories whose id was not an integer from 1 on"),
    "duplicate_category": ("repaired", "categories listed more than once under one name: joined"),
    "names_differ_in_case": ("noted", "parts whose name differs from another one in capitals only"),
    "category_without_annotations": ("noted", "parts that no annotation uses: kept, so that the label space is stable"),
    # annotations
    "unknown_image": ("skipped", "annotations of an image that the json does not list"),
    "unknown_category": ("skipped", "annotations of a category that the json does not list"),
    "background_annotation": ("skipped", "annotations of a background category"),
    "duplicate_annotation": ("skipped", "annotations that repeat another one exactly"),
    "crowd_to_ignore": ("skipped", "iscrowd 1: not a part, its pixels count nowhere (ignore_segmentation)"),
    "no_shape": ("skipped", "annotations without any shape"),
    "shape_kind": ("skipped", "annotations of a kind that has no area, such as points and lines"),
    "no_label": ("skipped", "annotations without a label"),
    "further_annotations": (
        "skipped",
        "annotations of an image by further people: the first or the ground truth counts",
    ),
    "turned_view": ("skipped", "annotations on an image that was turned in the tool: where they lie is not certain"),
    "far_outside": ("skipped", "annotations that reach further outside than a side of the image"),
    "mask_unreadable": ("skipped", "masks that cannot be read"),
    "mask_size": ("skipped", "masks of another size than their image"),
    "mask_without_image": ("skipped", "mask and label files that belong to no image"),
    "unknown_label": ("skipped", "labels of a mask that the table of names does not have: their pixels count nowhere"),
    "unknown_colour": (
        "skipped",
        "masks with colours that the table of names does not have: their pixels count nowhere",
    ),
    "zero_area": ("skipped", "annotations whose mask covers no pixel"),
    "degenerate_box": ("skipped", "annotations without a mask and without a box inside the image"),
    "annotation_id": ("repaired", "annotations whose id was not an integer from 1 on (COCO's AP misreads id 0)"),
    "duplicate_annotation_id": ("repaired", "annotations whose id another one has: renumbered"),
    "several_labels": ("noted", "annotations with several labels: the first is taken"),
    "crowd_to_part": ("repaired", "iscrowd 1 taken as an ordinary part (CVAT writes drawn masks so)"),
    "turned_box": ("repaired", "turned rectangles: drawn as polygons"),
    "flat_polygon": ("repaired", "segmentations that are one bare polygon instead of a list of them"),
    "bad_polygon": ("repaired", "annotations that lost polygons of fewer than 3 distinct points or odd length"),
    "rle_list_counts": ("repaired", "uncompressed RLE (list of counts): compressed"),
    "rle_unusable": ("repaired", "RLE of another size than the image, or broken: box only"),
    "empty_segmentation": ("repaired", "segmentations that are empty, null or left without polygon: box only"),
    "box_clipped": ("repaired", "boxes that left the image: clipped"),
    "box_replaced": ("repaired", "boxes that were missing or off by over 2 pixels: taken from the mask"),
    "box_only": ("noted", "parts with a box but no mask (train with INPUT.PART_MASKS boxes)"),
}


class ImportCounts:
    """Counts by reason; the first examples of each are kept."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.examples: dict[str, list[str]] = {}
        self.events: list[tuple[str, str]] = []  # all of them, for another tally to take over

    def add(self, reason: str, example: str) -> None:
        """Count an event, and keep the first examples of its reason.

        Raises:
            KeyError: the reason is not in REASONS.
        """
        if reason not in REASONS:
            raise KeyError(reason)
        self.counts[reason] += 1
        examples = self.examples.setdefault(reason, [])
        if len(examples) < EXAMPLES:
            examples.append(example)
        self.events.append((reason, example))

    def extend(self, events: Iterable[tuple[str, str]]) -> None:
        """Counts what another tally counted."""
        for reason, example in events:
            self.add(reason, example)

    def by_kind(self) -> dict[str, dict[str, dict]]:
        """{"skipped" | "repaired" | "noted": {reason: {count, examples}}}, in the order of REASONS."""
        result: dict[str, dict[str, dict]] = {"skipped": {}, "repaired": {}, "noted": {}}
        for reason, (kind, _) in REASONS.items():
            if self.counts[reason]:
                result[kind][reason] = {"count": self.counts[reason], "examples": self.examples[reason]}
        return result


def counted_text(tally: ImportCounts) -> str:
    """Return the counts in one line."""
    return ", ".join(f"{reason}: {count}" for reason, count in tally.counts.items()) or "nothing"


def class_counts(class_names: Sequence[str], splits: Mapping[str, Sequence[str]]) -> dict[str, dict[str, int]]:
    """{split: {class: images}} from {split: class name of each image}."""
    return {split: {name: list(found).count(name) for name in class_names} for split, found in splits.items()}


def markdown(report: Mapping) -> str:
    """The report for people."""
    lines = ["# Import report", ""]
    for source in report["sources"]:
        lines.append(
            f"- `{source['json']}` (split: {source['split']}): {source['images']} images, "
            f"{source['annotations']} annotations, {source['categories']} categories"
        )
    lines += [f"- images: `{report['image_root']}`", "", "## Images per class and split", ""]
    splits = list(report["images"])
    lines += [f"| class | {' | '.join(splits)} |", "|---|" + "---:|" * len(splits)]
    for name in report["classes"]:
        counts = " | ".join(str(report["images"][split][name]) for split in splits)
        lines.append(f"| {escape(name)} | {counts} |")
    totals = [sum(report["images"][split].values()) for split in splits]
    lines.append("| **all** | " + " | ".join(f"**{total}**" for total in totals) + " |")
    for kind, title in (("skipped", "Skipped"), ("repaired", "Repaired"), ("noted", "Noticed")):
        lines += ["", f"## {title}", ""]
        if not report[kind]:
            lines.append("Nothing.")
        for reason, entry in report[kind].items():
            shown = escape("; ".join(entry["examples"][:5]))
            lines.append(f"- **{entry['count']}** {REASONS[reason][1]} (`{reason}`). First: {shown}")
    lines += ["", f"## Parts of each class ({report['class_parts_from']})", ""]
    lines += [f"- {escape(name)}: {escape(', '.join(parts)) or 'none'}" for name, parts in report["classes"].items()]
    return "\n".join(lines) + "\n"
