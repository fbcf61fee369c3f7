"""Writes PartShapes as files: PNG images and one part json (docs/data_format.md) per split."""

from __future__ import annotations

import json
import multiprocessing
import re
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import cv2
from tqdm import tqdm

from part_robust.data.part_shapes.draw import MAX_SIZE, MIN_SIZE
from part_robust.data.part_shapes.samples import category_entries, class_entries, digest, draw_chunk
from part_robust.utils.files import write_bytes

DEFAULT_COUNTS: Mapping[str, int] = {"train": 2000, "val": 300, "test": 500}
DRAWING_VERSION = 1  # raise it whenever the same settings draw other pictures
CHUNK = 25  # images a worker draws at a time


def make_part_shapes(
    root: str | Path,
    counts: Mapping[str, int] = DEFAULT_COUNTS,
    image_size: int = 64,
    seed: int = 0,
    part_free_fraction: float = 0.05,
    workers: int = 0,
    overwrite: bool = False,
) -> dict[str, Path]:
    """Draws the data set, or returns at once where it is already drawn with the same settings.

    Every image depends on `seed`, its split and its number only: not on `workers`, nor on the counts of
    its own and the other splits. A call that was interrupted can simply be repeated; two calls must
    not draw into the same folder at the same time.

    Args:
        root: folder to write `annotations/{split}.json` and `images/{split}/000001.png` in. `file_name` in the
            json is relative to `root/images`.
        counts: number of images of each split; a split with 0 images is not written.
        image_size: side of the square images in pixels, 32..512.
        seed: chooses another data set of the same kind.
        part_free_fraction: share of the images of every split, 0..1, that have `part_supervision` "none"
            and no annotations.
        workers: processes to draw with; 0 or 1 draws in this one. More than one starts fresh Python processes,
            so a script that calls this needs the usual `if __name__ == "__main__"`.
        overwrite: draw again what is there, even where it was drawn with other settings.

    Returns:
        For each written split its json.

    Raises:
        ValueError: an argument is out of range; or `root` holds images of other settings and `overwrite` is
            False; or it holds files that PartShapes did not write.
    """
    _check_arguments(counts, image_size, part_free_fraction, workers)
    root = Path(root)
    jobs = [
        _Split(root, split, int(count), int(image_size), int(seed), float(part_free_fraction))
        for split, count in counts.items()
        if count
    ]
    # All splits are looked at before the first one is touched.
    todo = [job for job in jobs if not job.is_drawn(overwrite)]
    for job in todo:
        job.draw(workers)
    return {job.split: job.json_file for job in jobs}


def _check_arguments(counts: Mapping[str, int], image_size: int, part_free_fraction: float, workers: int) -> None:
    if not any(counts.values()):
        raise ValueError(f"counts must have at least one image, got {dict(counts)}")
    for split, count in counts.items():
        if not re.fullmatch(r"[A-Za-z0-9_]+", split):
            raise ValueError(f"a split name must consist of letters, digits and _, is {split!r}")
        if count < 0:
            raise ValueError(f"the number of {split} images must not be negative, is {count}")
    if not MIN_SIZE <= image_size <= MAX_SIZE:
        raise ValueError(f"image_size must be in {MIN_SIZE}..{MAX_SIZE} pixels, is {image_size}")
    if not 0 <= part_free_fraction <= 1:
        raise ValueError(f"part_free_fraction must be in 0..1, is {part_free_fraction}")
    if workers < 0:
        raise ValueError(f"workers must not be negative, is {workers}")


def _one_thread() -> None:
    """The workers already use all cores."""
    cv2.setNumThreads(1)


class _Split:
    """One split: where its files are, whether they are there, how they are drawn."""

    def __init__(
        self, root: Path, split: str, count: int, image_size: int, seed: int, part_free_fraction: float
    ) -> None:
        self.split = split
        self.count = count
        self.image_size = image_size
        self.seed = seed
        self.part_free_fraction = part_free_fraction
        self.folder = root / "images" / split
        self.json_file = root / "annotations" / f"{split}.json"
        # Tells an interrupted drawing from files that are none of ours.
        self.unfinished = root / "annotations" / f"{split}.unfinished"
        self.settings = {
            "count": count,
            "image_size": image_size,
            "seed": seed,
            "part_free_fraction": part_free_fraction,
            "drawing_version": DRAWING_VERSION,
        }
        self.header = {
            "format": "part-classification",
            "format_version": 1,
            "split": split,
            "split_unit": "image",
            "seed": seed,
            "config_hash": digest(split, sorted(self.settings.items())).hex(),
            "generator": "part_shapes",
            "settings": self.settings,
        }

    def is_drawn(self, overwrite: bool) -> bool:
        """Return whether nothing is left to do.

        Raises:
            ValueError: other files are in the way.
        """
        exists = self.json_file.exists()
        found = self._found_header()
        if found is None:
            if exists or (self.folder.is_dir() and any(self.folder.iterdir())):
                culprit = self.json_file if exists else self.folder
                raise ValueError(f"{culprit} was not written by PartShapes: draw into another folder (root, --root)")
            return False
        if overwrite:
            return False
        if found.get("config_hash") != self.header["config_hash"]:
            others = found.get("settings", {})
            differences = ", ".join(
                f"{key} {others.get(key)} instead of {value}"
                for key, value in self.settings.items()
                if others.get(key) != value
            )
            raise ValueError(
                f"{self.folder} holds PartShapes images of other settings ({differences}): draw into another "
                "folder (root, --root), or replace them (overwrite=True, --force)"
            )
        return exists and self._image_names() <= self._files()

    def _found_header(self) -> dict | None:
        """Return what an earlier call wrote about this split, None where it did not."""
        try:
            if self.json_file.exists():
                header = json.loads(self.json_file.read_text())["info"]["part_robust"]
            else:
                header = json.loads(self.unfinished.read_text())
            return header if header["generator"] == "part_shapes" else None
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None

    def _image_names(self) -> set[str]:
        return {f"{index + 1:06d}.png" for index in range(self.count)}

    def _files(self) -> set[str]:
        return {path.name for path in self.folder.iterdir()} if self.folder.is_dir() else set()

    def draw(self, workers: int) -> None:
        """Draws all images, then writes the json that says they are complete."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.json_file.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(self.unfinished, json.dumps(self.header).encode())
        self.json_file.unlink(missing_ok=True)
        for name in self._files() - self._image_names():
            if re.fullmatch(r"\d{6,}\.png(\.tmp)?", name):
                (self.folder / name).unlink()

        images: list[dict] = []
        annotations: list[dict] = []
        with tqdm(total=self.count, desc=f"PartShapes {self.split}", unit="image", disable=None) as bar:
            for chunk in self._drawn_chunks(workers):
                for image, its_annotations in chunk:
                    images.append(image)
                    annotations += [{"id": len(annotations) + i, **a} for i, a in enumerate(its_annotations, 1)]
                bar.update(len(chunk))
        content = {
            "info": {
                "description": "PartShapes: drawn objects made of parts",
                "version": str(DRAWING_VERSION),
                "part_robust": self.header,
            },
            "licenses": [],
            "classes": class_entries(),
            "categories": category_entries(),
            "images": images,
            "annotations": annotations,
        }
        write_bytes(self.json_file, (json.dumps(content) + "\n").encode())
        self.unfinished.unlink()

    def _drawn_chunks(self, workers: int) -> Iterator[list[tuple[dict, list[dict]]]]:
        draw = partial(
            draw_chunk,
            folder=self.folder,
            split=self.split,
            image_size=self.image_size,
            seed=self.seed,
            part_free_fraction=self.part_free_fraction,
        )
        chunks = [range(i, min(i + CHUNK, self.count)) for i in range(0, self.count, CHUNK)]
        if workers < 2:
            yield from map(draw, chunks)
            return
        # "spawn": a forked copy of a process that runs OpenCV or PyTorch threads can hang.
        with multiprocessing.get_context("spawn").Pool(workers, _one_thread) as pool:
            yield from pool.imap(draw, chunks)
