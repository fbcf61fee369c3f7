"""What attacks cost: beside the passes they consist of, with images leaving early, and beside pyautoattack.

Letters: N images of (3, H, W), RGB, 0..255.
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from crosscheck_attacks import ours
from crosscheck_peers import STANDARD, autoattack
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from tabulate import tabulate
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import part_robust.modeling  # noqa: F401  (registration)
from benchmarks.bounded import compare, compare_toys
from benchmarks.timing import CLOCKS, best_times, peak_memory
from part_robust.attacks import attack_mode, build_attack
from part_robust.config import attack_spec, get_part_robust_cfg
from part_robust.data.part_shapes import CLASSES, PARTS, draw_part_shape

DATASET = "benchmark_part_shapes"
# Of the search for a radius at which half of the images break.
ROUNDS = 8


class ClassPath(nn.Module):
    """Images -> class logits (N, C), for those who want a module."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model.class_logits(images)


class WholeModel(ClassPath):
    """Same as `ClassPath`, with the parts computed, too: the function that a tool without support for parts calls."""

    def forward(self, images: Tensor) -> Tensor:
        return whole_logits(self.model, images)


def whole_logits(model: nn.Module, images: Tensor) -> Tensor:
    """(N, C), differentiable, of a model that computes its parts whether the class needs them or not."""
    features = model.backbone(model.normalize(images))
    return model.head(features, model.segmenter(features, images.shape[-2:]))


def build(config_file: str, device: str, weights: str = "") -> nn.Module:
    """The config's model with the classes and parts of PartShapes; without `weights`, with random ones."""
    matrix = [[float(part in own.parts) for own in CLASSES.values()] for part in PARTS]
    MetadataCatalog.pop(DATASET, None)
    MetadataCatalog.get(DATASET).set(
        object_classes=list(CLASSES), thing_classes=list(PARTS), part_to_class=torch.tensor(matrix).numpy()
    )
    counts = ["MODEL.PART_CLASSIFIER.NUM_CLASSES", len(CLASSES), "MODEL.PART_CLASSIFIER.NUM_PARTS", len(PARTS)]
    cfg = get_part_robust_cfg(
        config_file, ["MODEL.DEVICE", device, "MODEL.WEIGHTS", "", "DATASETS.TRAIN", (DATASET,), *counts]
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build_model(cfg)
    if weights:
        DetectionCheckpointer(model).load(weights)
    return model.eval().requires_grad_(False)


def draw(count: int, size: int, device: str) -> Tensor:
    """Return float (count, 3, size, size), PartShapes images which no split has."""
    names = list(CLASSES)
    drawn = [draw_part_shape(names[i % len(names)], np.random.default_rng([7, i]), size).image for i in range(count)]
    return torch.from_numpy(np.stack(drawn)).permute(0, 3, 1, 2).float().contiguous().to(device)


def attack(args: argparse.Namespace) -> None:
    """Ratios that should be small: an attack over its passes, the class path over the whole model, early leaving."""
    device, clock = torch.device(args.device), CLOCKS[args.clock]
    print(
        f"PGD-{args.steps} and its passes, {args.images} images of {args.size} px, {args.device}, "
        f"{torch.get_num_threads()} threads, {args.clock} clock, best of {args.repeats}"
    )
    rows = []
    for config_file in args.config_files:
        model, images = build(config_file, args.device), draw(args.images, args.size, args.device)
        with attack_mode(model) as inner:
            rows += _passes(short(config_file), inner, images, args.steps, args.repeats, device, clock)
    headers = ["model", "what", "this", "over", "ratio", "target"]
    print(tabulate(rows, headers, "github", floatfmt=("", "", ".1f", ".1f", ".3f"), disable_numparse=[5]))

    model = build(args.attacked_config, args.device, args.weights)
    images = draw(args.attacked_images, args.attacked_size, args.device)
    with attack_mode(model) as inner:
        # Every image starts out right, with whatever weights.
        labels = inner.class_logits(images).argmax(dim=1)
        eps = args.eps or half_way(inner.class_logits, images, labels)
        print(
            f"\nEarly stopping, {short(args.attacked_config)} with {'trained' if args.weights else 'random'} weights, "
            f"{len(images)} images of {args.attacked_size} px, eps {eps:.3g} of 255, {args.clock} clock"
        )
        problem = (inner.class_logits, images, labels, eps, args.long_steps)
        rows = [_leaving(name, *problem, device, clock) for name in ("pgd", "apgd_ce")]
    print(tabulate(rows, headers="keys", tablefmt="github", floatfmt=".2f"))
    if args.pyautoattack:
        rows = _beside_autoattack(model, images, labels, eps, clock)
        print(f"\nAutoAttack's standard set ({' '.join(STANDARD)}) on the same images, one after the other")
        print(tabulate(rows, headers="keys", tablefmt="github", floatfmt=".2f"))
    if args.bound:
        rows = compare_toys(args.bound_images, args.bound, clock)
        if args.weights:
            name = short(args.attacked_config)
            rows.insert(0, compare(name, ClassPath(model).eval(), images, labels, args.bound, clock, eps))
        print(f"\nTier bounded, {args.bound:g} points, beside the standard set on all images; {args.clock} clock")
        print(tabulate(rows, headers="keys", tablefmt="github", floatfmt=".2f", missingval="-"))


def short(config_file: str) -> str:
    """Such as "part_shapes/deeplab_two_headed"."""
    path = Path(config_file)
    return f"{path.parent.name}/{path.stem}"


def _passes(
    name: str,
    inner: nn.Module,
    images: Tensor,
    steps: int,
    repeats: int,
    device: torch.device,
    clock: Callable[[], float],
) -> list[list]:
    """Rows of the table, for a model inside `attack_mode`."""
    labels = torch.arange(len(images), device=device) % len(CLASSES)
    keys = torch.arange(len(images))
    pgd = build_attack({"NAME": "PGD", "STEPS": steps, "STEP_SIZE": 1.0, "EPS": 8.0})

    def passes(logits_of: Callable[[Tensor], Tensor] = inner.class_logits) -> None:
        x = images.clone().requires_grad_(True)
        for _ in range(steps):
            loss = F.cross_entropy(logits_of(x), labels, reduction="sum")
            torch.autograd.grad(loss, x)

    def attacked() -> None:
        pgd(inner.class_logits, images, labels, keys=keys)

    @torch.no_grad()
    def class_path() -> None:
        inner.class_logits(images)

    @torch.no_grad()
    def whole() -> None:
        inner.inference(images, None)

    sides = {
        "passes": passes,
        "attacked": attacked,
        "passes through all": partial(passes, partial(whole_logits, inner)),
        "class path": class_path,
        "whole": whole,
    }
    times = best_times(sides, repeats, device, clock)
    held, alone = peak_memory(attacked, device), peak_memory(passes, device)
    pairs = [
        (f"PGD-{steps} over {steps} x forward and backward, ms", times["attacked"], times["passes"], "<= 1.05"),
        ("class path over whole model, inference, ms", times["class path"], times["whole"], "< 0.75"),
        ("class path over whole model, inference, MFLOP", mflops(class_path), mflops(whole), ""),
        (
            f"class path over whole model, {steps} x forward and backward, ms",
            times["passes"],
            times["passes through all"],
            "",
        ),
        ("peak memory of the attack over the passes, MB", held, alone, "<= 1.1"),
    ]
    return [[name, what, this, over, this / over, target] for what, this, over, target in pairs]


def mflops(run: Callable[[], None]) -> float:
    """Of convolutions and matrix products, in 10^6; a multiplication with its addition counts 2."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() / 1e6


def half_way(forward: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor) -> float:
    """A radius at which PGD-20 breaks about half of the images, 0..255 units."""
    low, high = 2.0**-6, 64.0
    for _ in range(ROUNDS):
        eps = (low * high) ** 0.5
        spec = {"STEPS": 20, "STEP_SIZE": eps / 5, "EPS": eps, "KEEP": "best"}
        fooled = build_attack(spec)(forward, images, labels, keys=torch.arange(len(images))).success
        low, high = (low, eps) if 2 * int(fooled.sum()) >= len(images) else (eps, high)
    return eps


def _leaving(
    name: str,
    forward: Callable[[Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
    eps: float,
    steps: int,
    device: torch.device,
    clock: Callable[[], float],
) -> dict:
    """A row: the attack with images leaving over the same without."""
    specs = {
        "pgd": {"STEP_SIZE": eps / 10, "KEEP": "best"},
        "apgd_ce": attack_spec(get_part_robust_cfg(), "apgd_ce"),
    }
    results = {}

    def run(early: bool) -> None:
        found = build_attack(specs[name], EPS=eps, STEPS=steps, EARLY_STOP=early)
        results[early] = found(forward, images, labels, keys=torch.arange(len(images)), scored=True)

    times = best_times({str(early): partial(run, early) for early in (True, False)}, 1, device, clock)
    early, full = results[True], results[False]
    return {
        "attack": f"{name}, {steps} steps",
        "broken": int(full.success.sum()),
        "flags that differ": int((early.success != full.success).sum()),
        "images forward": early.forwards,
        "without leaving": full.forwards,
        "ratio of images": early.forwards / full.forwards,
        "ratio of times": times["True"] / times["False"],
    }


def _beside_autoattack(
    model: nn.Module, images: Tensor, labels: Tensor, eps: float, clock: Callable[[], float]
) -> list[dict]:
    """Rows: our standard set over pyautoattack's, which is given the class path, and the whole model as it stands.

    Raises:
        SystemExit: it is not installed.
    """
    try:
        import pyautoattack  # noqa: F401
    except ModuleNotFoundError:
        raise SystemExit("--pyautoattack needs the package: pip install part_robust[aa]") from None
    path = ClassPath(model).eval()
    own = ours(path, images, labels, STANDARD, clock=clock, EPS=eps)
    rows = []
    for name, net in (("the class path", path), ("the whole model", WholeModel(model).eval())):
        official = autoattack(net, images, labels, STANDARD, "linf", eps, seed=0, clock=clock)
        rows.append(
            {
                "pyautoattack calls": name,
                "ours: robust": int(own.robust.sum()),
                "its": int(official.robust.sum()),
                "verdicts that differ": int((own.robust != official.robust).sum()),
                "ratio of forward passes": own.forwards / official.forwards,
                "seconds": own.seconds,
                "its seconds": official.seconds,
                "ratio of times (target <= 0.5)": own.seconds / official.seconds,
            }
        )
    return rows
