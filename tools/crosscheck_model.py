"""Other implementations' attacks on the images of a trained model that ours left: `crosscheck_attacks.py --record`.

Ours are those of an evaluation by tools/train_net.py, whose record is read. What each of the others' attacks finds is
kept beside the record, so an interrupted comparison continues.

Letters: N images of (3, H, W), C classes.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from crosscheck_peers import DETERMINISTIC, EXPENSIVE, Outcome, Peer
from detectron2.data import DatasetCatalog
from tabulate import tabulate
from torch import Tensor, nn

from part_robust.attacks import attack_mode
from part_robust.cli import train_net
from part_robust.data import PartDatasetMapper
from part_robust.engine import PartCheckpointer, PartTrainer
from part_robust.evaluation.statistics import wilson_interval
from part_robust.evaluation.verification import recorded_config
from part_robust.utils.errors import UserError
from part_robust.utils.files import read_arrays, read_json, write_json

RECORD = "robustness.json"
IMAGES, RESTART_GAIN = 200, 0.2
# Points of all images that the others may break beyond ours.
TARGET = 0.2


class ClassLogits(nn.Module):
    """Images (N, 3, H, W) in 0..255 -> class logits (N, C) of a part classifier inside `attack_mode`."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, images: Tensor) -> Tensor:
        return self.inner.class_logits(images)


@dataclass
class Found:
    """Results of one attack of a peer from one seed, as they are kept.

    Attributes:
        key: what they hang on: checkpoint, threat model, preparation of images.
        tried: ids of images.
        broken: ids of those that it broke.
        forwards: images sent through the model.
        seconds: of the processor, one thread.
    """

    key: dict[str, Any]
    tried: list[int] = field(default_factory=list)
    broken: list[int] = field(default_factory=list)
    forwards: int = 0
    seconds: float = 0.0

    def add(self, image_ids: Sequence[int], outcome: Outcome) -> None:
        """Add the outcome of a batch."""
        self.tried += image_ids
        self.broken += [image_ids[row] for row in (~outcome.robust).nonzero()[:, 0].tolist()]
        self.forwards += outcome.forwards
        self.seconds += outcome.seconds


def print_now(text: str) -> None:
    """Print a line that is seen at once, also in a file."""
    print(text, flush=True)


def evaluate_ours(args: argparse.Namespace) -> None:
    """Evaluate the model in `args.record`, unless its record is there; an interrupted evaluation continues.

    Raises:
        UserError: the evaluation is missing, and the config file or the weights that would make it were not given.
    """
    if (args.record / RECORD).is_file():
        return
    if not args.config_file or not args.weights:
        raise UserError(
            f"--record must be the folder of an evaluation, got {args.record} without {RECORD}: give --config-file and "
            "--weights of the model that is to be evaluated there"
        )
    opts = {"MODEL.WEIGHTS": args.weights, "OUTPUT_DIR": str(args.record), "TEST.TIER": args.tier}
    opts |= {"TEST.RESTART_GAIN": str(RESTART_GAIN), "TEST.NUM_IMAGES": str(args.images or IMAGES)}
    opts |= {"TEST.NORM": args.norm} if args.norm else {}
    opts |= {} if args.eps is None else {"TEST.EPS": str(args.eps)}
    resume = ["--resume"] if any(args.record.glob("journal_*/journal.json")) else []
    words = [word for pair in opts.items() for word in pair]
    train_net.main(["--eval-only", *resume, "--config-file", args.config_file, *words, *args.opts])


def crosscheck_model(
    folder: Path,
    weights: str,
    tier: str,
    peers: Mapping[str, Peer],
    *,
    attacks: Sequence[str] | None = None,
    seeds: int = 1,
    log: Callable[[str], None] = print_now,
) -> dict[tuple[str, str], list[Found]]:
    """Attack the images that a tier of an evaluation left with other implementations.

    Args:
        folder: of the evaluation.
        weights: where the checkpoint is now; "" where it was.
        tier: name, of attacks on the class.
        peers: by name.
        attacks: names; None: all that a peer has.
        seeds: runs of each attack that starts at random.
        log: receives a line for each run, and the table.

    Returns:
        The results by implementation and attack, one for each seed.

    Raises:
        UserError: the record has no such tier, its images are padded, or no peer has one of the attacks.
    """
    cfg, record = recorded_config(folder, weights, needs_images=False)
    dataset = cfg.DATASETS.TEST[0]
    evaluation = record["evaluation"].get(dataset, {"tiers": {}})
    if tier not in evaluation["tiers"]:
        raise UserError(
            f"--tier must be one of {', '.join(evaluation['tiers']) or 'none'} of {folder}, got {tier!r}: name one of "
            "them, or evaluate with it in another folder"
        )
    threat = {name: evaluation["tiers"][tier][name] for name in ("norm", "eps")}
    flags = read_arrays(folder / evaluation["files"]["flags"], "flags of images")
    if f"robust_{tier}" not in flags:
        raise UserError(f"--tier must attack the class, got {tier!r}: compare parts with --head parts")
    left = flags["image_id"][flags[f"robust_{tier}"].astype(bool)].tolist()
    key = {"checkpoint": record["checkpoint"]["sha256"], **threat, "input": cfg.INPUT.dump()}
    runs = planned(peers, threat["norm"], attacks, seeds)
    model = PartTrainer.build_model(cfg)
    PartCheckpointer(model, strict=True).load(cfg.MODEL.WEIGHTS)
    images, labels = load_images(model, cfg, dataset, left)
    log(f"{len(flags['image_id'])} images of {dataset}, {threat['norm']}, eps {threat['eps']:g}: {len(left)} left")
    results: dict[tuple[str, str], list[Found]] = {}
    with attack_mode(model) as inner:
        net = ClassLogits(inner)
        for number, (name, attack, seed) in enumerate(runs, start=1):
            what = f"[{number}/{len(runs)}] {name} {attack}, seed {seed}"
            file = folder / f"crosscheck_{dataset}_{tier}" / f"{name}_{attack}_{seed}.json"
            found = read_found(file, key)
            untried = [row for row, image_id in enumerate(left) if image_id not in set(found.tried)]
            if untried:
                log(f"{what}: {len(untried)} images ...")
            for start in range(0, len(untried), cfg.DATALOADER.TEST_BATCH_SIZE):
                rows = untried[start : start + cfg.DATALOADER.TEST_BATCH_SIZE]
                outcome = peers[name].run(net, images[rows], labels[rows], [attack], *threat.values(), seed)
                found.add([left[row] for row in rows], outcome)
                write_json(file, asdict(found))
            # The evaluation may have broken more since they were tried.
            found.broken = sorted(set(found.broken) & set(left))
            log(f"{what}: broke {len(found.broken)} of {len(left)}, {found.seconds:.0f} s")
            results.setdefault((name, attack), []).append(found)
    log(table(results, len(flags["image_id"])))
    return results


def load_images(model: Any, cfg: Any, dataset: str, image_ids: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return images float (N, 3, H, W), 0..255, on the model's device, and labels int64 (N,).

    Raises:
        UserError: the images are padded, which others' attacks do not know.
    """
    records = {record["image_id"]: record for record in DatasetCatalog.get(dataset)}
    mapper = PartDatasetMapper(cfg, is_train=False, dataset_name=dataset)
    items = [mapper(records[image_id]) for image_id in image_ids]
    if not items:
        return torch.zeros(0, 3, 1, 1), torch.zeros(0, dtype=torch.int64)
    images, padding = model.preprocess(items)
    if padding is not None and padding.any():
        raise UserError(
            f"INPUT.TEST_TRANSFORM must leave no padding, got {cfg.INPUT.TEST_TRANSFORM}: others' attacks would change "
            "it. Evaluate with center_crop"
        )
    return images, torch.tensor([item["class_id"] for item in items], device=images.device)


def planned(
    peers: Mapping[str, Peer], norm: str, attacks: Sequence[str] | None, seeds: int
) -> list[tuple[str, str, int]]:
    """Return implementation, attack and seed of each run, cheap ones first; what no seed changes runs once."""
    runs = [
        (name, attack, seed)
        for name, peer in peers.items()
        for attack in peer.names(norm, attacks)
        for seed in range(1 if attack in DETERMINISTIC else seeds)
    ]
    if not runs:
        raise UserError(f"--attacks must be of {', '.join(peers)} under {norm}, got {' '.join(attacks or ('none',))}")
    return sorted(runs, key=lambda run: (run[2], EXPENSIVE.index(run[1]) if run[1] in EXPENSIVE else -1))


def read_found(file: Path, key: Mapping[str, Any]) -> Found:
    """Return what is kept in a file, without any result where it hangs on something else than `key`."""
    fresh = Found(dict(key))
    if not file.is_file():
        return fresh
    kept = read_json(file, "delete it", keys=asdict(fresh))
    return Found(**kept) if kept["key"] == fresh.key else fresh


def table(results: Mapping[tuple[str, str], Sequence[Found]], count: int) -> str:
    """Return what each attack broke that ours left, over all its seeds, and their union, as text.

    Args:
        results: by implementation and attack, one for each seed.
        count: N, all images.
    """
    rows, union = [], set()
    for (name, attack), runs in sorted(results.items()):
        broken = {image_id for run in runs for image_id in run.broken}
        union |= broken
        rows.append(
            {
                "implementation": name,
                "attack": attack,
                "seeds": len(runs),
                "broken that ours left (ids)": f"{len(broken)} {sorted(broken) or ''}".strip(),
                "points": 100.0 * len(broken) / count,
                "forwards": sum(run.forwards for run in runs),
                "CPU seconds": round(sum(run.seconds for run in runs)),
            }
        )
    low, high = (100.0 * end for end in wilson_interval(len(union), count))
    points = 100.0 * len(union) / count
    verdict = "met" if points <= TARGET else "missed"
    return (
        f"\n{tabulate(rows, headers='keys', tablefmt='github', floatfmt='.2f')}\n\n"
        f"broken by the union of all, and not by ours: {len(union)} of {count} images, {points:.2f} points "
        f"[{low:.2f}, {high:.2f}]; target {TARGET:g} points: {verdict}"
    )
