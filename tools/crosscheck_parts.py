"""Our attacks on dense parts against other implementations', on a trained model: `crosscheck_attacks.py --head parts`.

The others are checkouts that the user names; nothing of them is copied or installed. Known are
szegedai/Robust-Segmentation-Evaluation (ten attacks; it needs adv-lib), nmndeep/Robust-Segmentation (SEA) and
jeromerony/adversarial-library (adv-lib).

Letters: N images, K = P + 1 labels (background last), H W pixels.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import time
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model
from tabulate import tabulate
from torch import Tensor, nn

from part_robust import load_config
from part_robust.attacks import Attack, attack_batch, attack_mode, get_objective
from part_robust.config import attack_spec
from part_robust.configured_attacks import build_attacks
from part_robust.data import PartDatasetMapper
from part_robust.engine import PartCheckpointer
from part_robust.evaluation.attacked_batch import LabelCounts, label_counts
from part_robust.evaluation.greedy_miou import greedy_worst_miou
from part_robust.utils.errors import UserError

# (model, images (N, 3, H, W) in 0..1, labels (N, H, W) of all pixels) -> attacked images in 0..1.
Peer = Callable[[nn.Module, Tensor, Tensor], Tensor]


class PartLogits(nn.Module):
    """Images in 0..1 -> part logits (N, K, H, W) of a model of ours in evaluation mode; counts images."""

    def __init__(self, logits: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.logits = logits
        self.forwards = 0
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        self.forwards += len(images)
        return self.logits(255.0 * images)


@dataclass
class PartOutcome:
    """Result of one attack.

    Attributes:
        wrong: (N,), labelled pixels that are wrong.
        counts: of labels, `greedy_worst_miou`'s choice.
        forwards: images sent through the model.
        seconds: of the processor, one thread.
    """

    wrong: Tensor
    counts: Mapping[str, Any]
    forwards: int = 0
    seconds: float = 0.0


def load_peers(folders: Sequence[str], num_labels: int, eps: float) -> dict[str, Peer]:
    """Return the attacks of other implementations by name, with the settings that their authors evaluate with.

    Args:
        folders: checkouts.
        num_labels: K.
        eps: L-inf radius, 0..255 units.

    Raises:
        UserError: a folder holds no known implementation.
    """
    # ALMA prox is compiled when it is imported, which takes longer than the small models that are checked here.
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    for name in ("visdom", "autoattack.other_utils"):
        _stand_in(name)
    known = {"rse/attacks.py": _szeged, "semseg/attacker.py": _sea, "adv_lib/attacks/__init__.py": _adv_lib}
    kinds = []
    for folder in map(Path, folders):
        found = [loader for file, loader in known.items() if (folder / file).is_file()]
        if not found:
            raise UserError(
                f"--peers must be checkouts with one of {', '.join(known)}, got {folder}: clone one of them"
            )
        sys.path.insert(0, str(folder.resolve()))
        kinds += [partial(loader, folder) for loader in found]
    return {name: attack for load in kinds for name, attack in load(num_labels, eps / 255).items()}


def _stand_in(name: str) -> None:
    """An empty module in the place of one that others import for plots and logs."""
    top = name.split(".")[0]
    if top in sys.modules or importlib.util.find_spec(top) is not None:
        return
    module = sys.modules[top] = types.ModuleType(top)
    if top != name:
        inner = sys.modules[name] = types.ModuleType(name)
        inner.L0_norm = inner.L1_norm = inner.L2_norm = None
        inner.Logger = lambda path: types.SimpleNamespace(log=lambda text: None)
        setattr(module, name.split(".")[1], inner)


def _szeged(folder: Path, num_labels: int, eps: float) -> dict[str, Peer]:
    if importlib.util.find_spec("adv_lib") is None:
        raise UserError(f"--peers must name a checkout of adv-lib besides {folder}, got none: it imports adv-lib")
    rse = importlib.import_module("rse")
    names = [name for name in rse.ATTACKS if name != "no-attack"]
    built = rse.build_attacks(names, num_labels, eps)
    return {f"rse {name}": attack for name, attack in zip(names, built, strict=True)}


def _sea(folder: Path, num_labels: int, eps: float) -> dict[str, Peer]:
    spec = importlib.util.spec_from_file_location("sea_attacker", folder / "semseg" / "attacker.py")
    assert spec is not None and spec.loader is not None
    sea = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sea)

    def run(loss: str, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        area = torch.bincount(labels.flatten(), minlength=num_labels).clamp(min=1)
        found = sea.apgd_largereps(
            *(model, images, labels, area.sum() / (num_labels * area)),
            eps=eps,
            n_iter=300,
            use_rs=True,
            loss=loss,
            track_loss="ce-avg",
            num_classes=num_labels,
        )
        return found[0]

    return {f"SEA {loss}": partial(run, loss) for loss in ("mask-ce-bal", "mask-ce-avg", "js-avg")}


def _adv_lib(folder: Path, num_labels: int, eps: float) -> dict[str, Peer]:
    segmentation = importlib.import_module("adv_lib.attacks.segmentation")
    pdpgd = partial(segmentation.pdpgd, norm=float("inf"))
    return {"adv_lib alma_prox": segmentation.alma_prox, "adv_lib pdpgd": pdpgd}


class Comparison:
    """Attacks of several origins on the same images of one model."""

    def __init__(self, model: nn.Module, items: Sequence[dict], num_parts: int, batch: int = 25) -> None:
        """Predict the images before any attack.

        Args:
            model: a part classifier with dense parts.
            items: the mapper's dicts, with part labels.
            num_parts: P.
            batch: images at a time.
        """
        self.model, self.num_parts = model, num_parts
        self.batches = [list(items[i : i + batch]) for i in range(0, len(items), batch)]
        self.outcomes: dict[str, PartOutcome] = {}
        self.run("clean", lambda inner, own, images, padding: (images, 0))
        self.clean = self.outcomes.pop("clean")
        self.pixels = self.clean_counts.pixels.double()

    def run(self, name: str, attack: Callable[..., tuple[Tensor, int]]) -> None:
        """Attack all images.

        Args:
            name: of the outcome.
            attack: (model inside `attack_mode`, items, images (N, 3, H, W) in 0..255, padding (N, H, W) or None) ->
                attacked images, forwards.
        """
        start, forwards, counts = time.process_time(), 0, []
        with attack_mode(self.model) as inner:
            for own in self.batches:
                images, padding = inner.preprocess(own)
                attacked, number = attack(inner, own, images, padding)
                forwards += number
                with torch.no_grad():
                    counts.append(label_counts(inner.inference(attacked, padding), own, self.num_parts))
        whole = LabelCounts(
            *(torch.cat([getattr(c, field) for c in counts]) for field in ("hits", "truth", "predicted"))
        )
        if name == "clean":
            self.clean_counts = whole
        image, label = ((whole.truth > 0) | (whole.predicted > 0)).nonzero(as_tuple=True)
        choice = {"image_id": image.numpy(), "label": label.numpy()}
        choice |= {field: getattr(whole, field)[image, label].numpy() for field in ("hits", "truth", "predicted")}
        wrong = (whole.pixels - whole.right).double()
        self.outcomes[name] = PartOutcome(wrong, choice, forwards, time.process_time() - start)

    def run_ours(self, name: str, attack: Attack) -> None:
        """Run an attack of ours."""

        def attacked(inner: Any, items: list[dict], images: Tensor, padding: Tensor | None) -> tuple[Tensor, int]:
            keys = torch.tensor([item["image_id"] for item in items])
            result, _ = attack_batch(attack, inner, items, keys)
            return result.images, result.forwards

        self.run(name, attacked)

    def run_peer(self, name: str, peer: Peer, eps: float, seed: int = 0) -> None:
        """Run another implementation's attack; what leaves the ball or 0..255 is projected back."""

        def attacked(inner: Any, items: list[dict], images: Tensor, padding: Tensor | None) -> tuple[Tensor, int]:
            labels = torch.stack([item["sem_seg"] for item in items]).to(images.device)
            labels = labels.where(labels <= self.num_parts, self.num_parts)
            view = PartLogits(partial(inner.part_logits, padding=padding))
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                found = peer(view, images / 255, labels).detach()
            change = (255 * found - images).clamp(-eps, eps)
            if padding is not None:
                change = change * ~padding[:, None]
            return (images + change).clamp(0, 255), view.forwards

        self.run(name, attacked)

    def accuracy(self, names: Sequence[str]) -> float:
        """Pixel accuracy in percent, of each image under the worst of these attacks and without any."""
        wrong = torch.stack([self.clean.wrong, *(self.outcomes[name].wrong for name in names)]).amax(dim=0)
        return 100.0 * float(1.0 - wrong.sum() / self.pixels.sum())

    def miou(self, names: Sequence[str]) -> float:
        """MIoU in percent, each image under the attack by which it falls most over all images."""
        choices = [self.clean.counts, *(self.outcomes[name].counts for name in names)]
        return greedy_worst_miou(choices, self.num_parts + 1)[0]

    def table(self, ours: Sequence[str], theirs: Sequence[str]) -> str:
        """Return what every attack takes, and what it takes alone, as text.

        "alone" are the points that the union of its own side would lose without it; "beyond ours" those that it adds to
        the union of all of ours.
        """
        rows = []
        for side in (ours, theirs):
            for name in side:
                outcome = self.outcomes[name]
                rest = [other for other in side if other != name]
                rows.append(
                    {
                        "attack": name,
                        "pixel accuracy %": self.accuracy([name]),
                        "alone": self.accuracy(rest) - self.accuracy(side),
                        "beyond ours": self.accuracy(ours) - self.accuracy([*ours, name]) if side is theirs else None,
                        "forwards": outcome.forwards,
                        "CPU seconds": round(outcome.seconds),
                    }
                )
        unions = {"clean": [], "union of ours": ours, "union of theirs": theirs, "union of both": [*ours, *theirs]}
        summary = [
            {"": name, "pixel accuracy %": self.accuracy(names), "mIoU %": self.miou(names)}
            for name, names in unions.items()
        ]
        alone = self.accuracy(ours) - self.accuracy([*ours, *theirs])
        tables = [tabulate(own, headers="keys", tablefmt="github", floatfmt=".2f") for own in (rows, summary)]
        return "\n\n".join([*tables, f"taken by theirs alone: {alone:.2f} points of pixel accuracy"])


def print_now(text: str) -> None:
    """Print a line that is seen at once, also in a file."""
    print(text, flush=True)


def crosscheck_parts(
    config_file: str,
    opts: Sequence[str],
    peers: Sequence[str],
    *,
    attacks: Sequence[str],
    eps: float,
    images: int,
    log: Callable[[str], None] = print_now,
) -> Comparison:
    """Compare a trained model's dense parts under our attacks and under others'.

    Args:
        config_file: of the model.
        opts: KEY VALUE pairs; MODEL.WEIGHTS among them.
        peers: checkouts of other implementations; none: our attacks alone.
        attacks: names in ATTACK.SPECS; none: those of TEST.TIERS.parts on dense parts.
        eps: L-inf radius, 0..255 units.
        images: of DATASETS.TEST, with part labels, spread evenly. To the others pixels without a label are background.
        log: receives a line for each attack, and the tables.
    """
    cfg = load_config(config_file, opts)
    chosen = list(attacks) or [
        name for name in cfg.TEST.TIERS.parts if get_objective(attack_spec(cfg, name).OBJECTIVE).needs_pixels
    ]
    for name in chosen:
        cfg.ATTACK.SPECS[name].EPS = float(eps)
    model = build_model(cfg).eval()
    PartCheckpointer(model, strict=True).load(cfg.MODEL.WEIGHTS)
    dataset = cfg.DATASETS.TEST[0]
    mapper = PartDatasetMapper(cfg, is_train=False, dataset_name=dataset)
    records = [record for record in DatasetCatalog.get(dataset) if record["part_supervision"] != "none"]
    items = [mapper(record) for record in records[:: max(len(records) // images, 1)][:images]]
    num_parts = cfg.MODEL.PART_CLASSIFIER.NUM_PARTS
    others = load_peers(peers, num_parts + 1, eps)
    comparison = Comparison(model, items, num_parts)
    for name, attack in build_attacks(cfg, chosen).items():
        comparison.run_ours(name, attack)
        log(f"{name}: {comparison.accuracy([name]):.2f} %")
    for name, peer in others.items():
        comparison.run_peer(name, peer, eps)
        log(f"{name}: {comparison.accuracy([name]):.2f} %")
    log(f"\n{len(items)} images of {dataset}, linf, eps {eps:g} of 255\n\n{comparison.table(chosen, list(others))}")
    return comparison
