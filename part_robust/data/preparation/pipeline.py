"""From units of work (one source image each) to the part jsons: in parallel, resumable, to the byte the same.

A unit's result is computed by a worker, kept in a journal, and only when all are there do the splits, the ids and the
json files come into being, in the order of the keys. So neither the number of workers nor an interruption shows.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from part_robust.data.part_json import UNFINISHED
from part_robust.data.preparation.journal import PreparationJournal, dump, locked
from part_robust.data.preparation.parallel import in_parallel
from part_robust.data.preparation.report import Check, PreparationCounts, library_versions, write_report
from part_robust.data.preparation.split_writer import SplitWriter
from part_robust.data.preparation.splits import SPLITS, shared_between_splits
from part_robust.utils.files import write_text

logger = logging.getLogger(__name__)

VERSION = 1  # raise it whenever the same input gives other output
WORK = ".preparation"  # below the output folder, gone when all is done


class PreparedImage(NamedTuple):
    """Properties of an image of the output that its split can depend on."""

    key: str  # unique; the output is in this order
    group: str  # samples of one group must not be in two splits
    content: str  # hash of the source file
    class_id: int
    source_split: str  # the data set's own


@dataclass(frozen=True)
class Preparation:
    """Preparation of one data set, as its tool describes it.

    Attributes:
        output: folder to write `annotations/<split>.json`, `splits/<split>.txt`, report.json and report.md in.
        title: one line for the report and the json's description.
        settings: json values; everything that the output depends on, input hashes included.
        header: entries of the json's `info.part_robust`.
        classes, categories: those of the part json.
        units: yields (key, payload) of all units but those whose key is in the set that it is given.
        total: number of all units.
        process: turns a payload into a result: a dict of `samples` (dicts with key, group, content, source_split and
            the part json's `image` and `annotations`, without ids), and optionally `skipped` and `noted` (lists of
            [reason, example]), `counts` (name: number to sum up) and `files` ([name, size, crc32] below `output`).
            It must be a function that other processes can import, or a partial of one.
        assign: gives each sample a split, or a word that says why it is left out.
        leak_free: nothing may be in two splits; otherwise it is only reported.
    """

    output: Path
    title: str
    settings: dict
    header: dict
    classes: list[dict]
    categories: list[dict]
    units: Callable[[frozenset[str]], Iterable[tuple[str, Any]]]
    total: int
    process: Callable[[Any], dict]
    assign: Callable[[Sequence[PreparedImage]], Sequence[str]]
    leak_free: bool = True
    checks: list[Check] = field(default_factory=list)
    tallies: dict[str, PreparationCounts] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    # Checks the summed counts of all results before anything is written: returns more checks and notes, or raises.
    conclude: Callable[[Counter], tuple[list[Check], list[str]]] | None = None


def prepare(preparation: Preparation, workers: int = 1, restart: bool = False) -> dict[str, Path]:
    """Runs or resumes a preparation; returns at once where it is complete.

    Args:
        preparation: what to do.
        workers: processes; 0 or 1 works in this one. The output does not depend on it.
        restart: forget what an earlier run with any settings left in the output folder.

    Returns:
        The json of every split that has samples.

    Raises:
        RuntimeError: another process works in the folder, or a split leaks.
        ValueError: the folder holds something else; says what to do.
    """
    output = preparation.output
    settings = {**preparation.settings, "version": VERSION, "libraries": library_versions()}
    work = output / WORK
    with locked(work):
        if restart:
            (work / "journal").unlink(missing_ok=True)
            (output / "report.json").unlink(missing_ok=True)
        if not restart and _is_complete(output, settings):
            logger.info("%s is prepared already with these settings", output)
        else:
            journal = PreparationJournal(work / "journal", json.loads(dump(settings)), output)
            try:
                _process(preparation, journal, workers)
                _finish(preparation, journal, settings, work)
            finally:
                journal.close()
    shutil.rmtree(work)
    return _written(output)


def default_workers() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def file_hash(path: Path, algorithm: str = "blake2b") -> str:
    """Return the hash of a file's content, as hexadecimal digits."""
    digest = hashlib.new(algorithm)
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _is_complete(output: Path, settings: dict) -> bool:
    """Return whether nothing is left to do; raises ValueError where other files are in the way."""
    report = output / "report.json"
    if report.is_file():
        found = json.loads(report.read_text())
        if found.get("settings") != json.loads(dump(settings)):
            keys = sorted(k for k in {*settings, *found.get("settings", {})}
                          if found.get("settings", {}).get(k) != json.loads(dump(settings)).get(k))  # fmt: skip
            raise ValueError(
                f"{output} holds data prepared with other settings ({', '.join(keys)}): prepare into another folder "
                "(--output), or replace them (--restart)"
            )
        return all(
            (output / name).is_file() and (output / name).stat().st_size == size
            for name, size in found.get("outputs", {}).items()
        )
    if _written(output) and not (output / WORK / "journal").is_file():
        raise ValueError(
            f"{next(iter(_written(output).values()))} was not written by this tool: prepare into another folder "
            "(--output), or replace it (--restart)"
        )
    return False


def _written(output: Path) -> dict[str, Path]:
    paths = {split: output / "annotations" / f"{split}.json" for split in SPLITS}
    return {split: path for split, path in paths.items() if path.is_file()}


def _process(preparation: Preparation, journal: PreparationJournal, workers: int) -> None:
    done = frozenset(journal.units)
    if done:
        logger.info("%d of %d images are done already", len(done), preparation.total)
    units = preparation.units(done)
    bar = tqdm(total=preparation.total, initial=len(done), unit="image", desc=preparation.title, smoothing=0.05)
    with bar:
        for key, result in in_parallel(preparation.process, units, workers):
            journal.append(key, result)
            bar.update()


def _finish(preparation: Preparation, journal: PreparationJournal, settings: dict, work: Path) -> None:
    samples: list[PreparedImage] = []
    counts: Counter[str] = Counter()
    skipped = preparation.tallies.setdefault("Left out", PreparationCounts())
    noted = preparation.tallies.setdefault("Worth knowing", PreparationCounts())
    for _, result in journal.results():
        for entry in result["samples"]:
            fields = (entry["key"], entry["group"], entry["content"], entry["image"]["class_id"])
            samples.append(PreparedImage(*fields, entry["source_split"]))
        for tally, key in ((skipped, "skipped"), (noted, "noted")):
            for reason, example in result.get(key, ()):
                tally.add(reason, example)
        counts.update(result.get("counts", {}))
    split_of = {}
    for sample, split in zip(samples, preparation.assign(samples), strict=True):
        if split in SPLITS:
            split_of[sample.key] = split
        else:
            skipped.add(split, sample.key)
    if not split_of:
        raise ValueError(f"{preparation.title}: no sample is left: {dict(skipped.counts)}")
    leaks = _leaks(preparation, samples, split_of)
    more_checks, more_notes = preparation.conclude(counts) if preparation.conclude else ([], [])
    frame = {"classes": preparation.classes, "categories": preparation.categories, "licenses": []}
    digest = hashlib.blake2b(dump(settings).encode(), digest_size=16).hexdigest()
    marker = preparation.output / "annotations" / UNFINISHED
    write_text(marker, f"{preparation.title} was interrupted: repeat the command\n")
    writers = {split: SplitWriter(work, split) for split in SPLITS}
    for _, result in journal.results():
        for entry in result["samples"]:
            if entry["key"] in split_of:
                writers[split_of[entry["key"]]].add(entry)
    report: dict[str, Any] = {"title": preparation.title, "settings": settings, "splits": {}, "per_class": {}}
    report["notes"] = [*preparation.notes, *more_notes]
    checks = list(preparation.checks)
    outputs = {}
    for split, writer in writers.items():
        path = preparation.output / "annotations" / f"{split}.json"
        header = {"format": "part-classification", "format_version": 1, **preparation.header}
        header |= {"split": split, "config_hash": digest}
        info = {"description": preparation.title, "version": "1.0", "part_robust": header}
        if writer.finish(path, {**frame, "info": info}):
            outputs[f"annotations/{split}.json"] = path.stat().st_size
            keys = sorted(key for key, chosen in split_of.items() if chosen == split)
            write_text(preparation.output / "splits" / f"{split}.txt", "\n".join(keys) + "\n")
            report["per_class"][split] = writer.class_counts(preparation.classes)
            report["splits"][split] = writer.summary(preparation.classes, preparation.categories)
        else:
            path.unlink(missing_ok=True)
            report["notes"].append(f"split {split} is empty: no json was written for it")
    for what, found in leaks.items():
        checks.append(Check(f"{what} in two splits", (0,) if preparation.leak_free else (), len(found), exact=True))
        report.setdefault("leaks", {})[what] = {"count": len(found), "examples": list(found)[:20]}
    checks += more_checks
    report["counts"], report["outputs"] = dict(counts), outputs
    marker.unlink()
    write_report(preparation.output, json.loads(dump(report)), checks, preparation.tallies)


def _leaks(preparation: Preparation, samples: Sequence[PreparedImage], split_of: dict[str, str]) -> dict[str, dict]:
    used = [sample for sample in samples if sample.key in split_of]
    leaks = {
        "groups": shared_between_splits((s.group, split_of[s.key]) for s in used),
        "file contents": shared_between_splits((s.content, split_of[s.key]) for s in used),
    }
    for what, found in leaks.items():
        if found and preparation.leak_free:
            name, splits = next(iter(found.items()))
            raise RuntimeError(f"{len(found)} {what} are in two splits, first {name} in {' and '.join(splits)}")
    return leaks
