#!/usr/bin/env python
"""Our attacks against other implementations, on three small nets trained within seconds on toy images.

python tools/crosscheck_attacks.py
python tools/crosscheck_attacks.py --norm l2 --eps 250 --images 100 --seeds 3
python tools/crosscheck_attacks.py --norm l1 --eps 2000 --images 100 --seeds 3

Compares robust accuracy, images sent through the model forward, and seconds with pyautoattack (the official AutoAttack,
pip install part_robust[aa]) and with adv-lib (written independently), as far as they are installed.

With --head parts: our attacks on dense parts and those of others' checkouts, on a trained model (crosscheck_parts.py).

python tools/crosscheck_attacks.py --head parts --config-file part_shapes/deeplab_segmenter_adv.yaml --eps 8 \
    --peers DIR/Robust-Segmentation-Evaluation DIR/adversarial-library --opts MODEL.WEIGHTS output/.../model_best.pth
"""

import argparse
import sys
import time
import types
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

import torch
from tabulate import tabulate
from torch import Tensor, nn
from torch.nn import functional as F

from part_robust.attacks import attack_mode, build_attack
from part_robust.attacks.apgd import L1_RESTARTS
from part_robust.config import attack_spec, get_part_robust_cfg

CLASSES = 10
# A multiple of 3 for the patches; of 5 since pyautoattack's Square fails on others under L2 and L1.
SIDE = 15
# What AutoAttack calls standard, in its order.
STANDARD = ("apgd_ce", "apgd_t", "fab_t", "square")


@dataclass
class Outcome:
    """Of one attack, or several in a row, on one net.

    Attributes:
        robust: bool (N,).
        forwards: images sent through the model.
        seconds: of the processor, one thread.
    """

    robust: Tensor
    forwards: int
    seconds: float


class Scaled(nn.Module):
    """A net of ours for those who want images in 0..1; counts images."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.forwards = 0

    def forward(self, images: Tensor) -> Tensor:
        self.forwards += len(images)
        return self.net(255.0 * images)


class Normalised(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return (images - 128.0) / 64.0


class Attending(nn.Module):
    """Patches that look at each other."""

    def __init__(self, dim: int = 24) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, dim, 3, stride=3)
        self.places = nn.Parameter(torch.randn(1, (SIDE // 3) ** 2, dim) / 10)
        self.layer = nn.TransformerEncoderLayer(dim, 4, 2 * dim, dropout=0.0, batch_first=True, activation="gelu")
        self.classes = nn.Linear(dim, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.patches(images).flatten(2).transpose(1, 2) + self.places
        return self.classes(self.layer(tokens).mean(dim=1))


def architectures() -> dict[str, Callable[[], nn.Module]]:
    return {
        "convolutions": lambda: nn.Sequential(
            Normalised(),
            *(nn.Conv2d(3, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 24, 3, stride=2, padding=1), nn.ReLU()),
            *(nn.Flatten(), nn.Linear(24 * ((SIDE + 1) // 2) ** 2, CLASSES)),
        ),
        "perceptron": lambda: nn.Sequential(
            *(Normalised(), nn.Flatten(), nn.Linear(3 * SIDE**2, 64), nn.GELU(), nn.Linear(64, CLASSES)),
        ),
        "attention": lambda: nn.Sequential(Normalised(), Attending()),
    }


def toy_images(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return images float (count, 3, SIDE, SIDE), 0..255, and labels int64 (count,).

    An image is one soft pattern per class under noise.
    """
    generator = torch.Generator().manual_seed(0)
    patterns = F.interpolate(torch.randn(CLASSES, 3, 4, 4, generator=generator), size=(SIDE, SIDE), mode="bilinear")
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (count,), generator=generator)
    strength = 0.5 + torch.rand(count, 1, 1, 1, generator=generator)
    noise = torch.randn(count, 3, SIDE, SIDE, generator=generator)
    return (128 + 30 * strength * patterns[labels] + 25 * noise).clamp(0, 255), labels


def train(build: Callable[[], nn.Module], norm: str, eps: float, steps: int = 150) -> nn.Module:
    """A net trained adversarially with half the radius, so that it breaks on some images and stands on others."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = build()
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    attack = build_attack({"NORM": norm, "EPS": eps / 2, "STEPS": 3, "STEP_SIZE": eps / 4})
    for step in range(steps):
        attack.scale = min(1.5 * step / steps, 1.0)
        images, labels = toy_images(64, seed=1000 + step)
        with attack_mode(net) as inner:
            images = attack(inner, images, labels, keys=torch.arange(64) + 64 * step).images
        optimizer.zero_grad()
        F.cross_entropy(net(images), labels).backward()
        optimizer.step()
    return net.eval().requires_grad_(False)


def ours(
    net: nn.Module,
    images: Tensor,
    labels: Tensor,
    names: tuple[str, ...],
    clock: Callable[[], float] = time.process_time,
    keys: Tensor | None = None,
    **overrides: object,
) -> Outcome:
    """Our attacks one after the other, each on the images that still stand; `keys` (N,) are 0 to N - 1 by default."""
    specs = get_part_robust_cfg()
    start = clock()
    standing = torch.arange(len(images), device=images.device)
    keys = standing if keys is None else keys
    forwards = 0
    with attack_mode(net) as inner:
        for name in names:
            several = {"RESTARTS": L1_RESTARTS} if name == "apgd_ce" and overrides.get("NORM") == "l1" else {}
            attack = build_attack(attack_spec(specs, name), **overrides, **several)
            if name != names[0] and attack.targets is None:
                attack.offer_original = False  # the first one found out who is right
            if not len(standing):
                break
            result = attack(inner, images[standing], labels[standing], keys=keys[standing])
            forwards += result.forwards
            standing = standing[~result.success]
    robust = torch.zeros_like(labels, dtype=torch.bool).index_fill(0, standing, True)
    return Outcome(robust, forwards, clock() - start)


def autoattack(
    net: nn.Module,
    images: Tensor,
    labels: Tensor,
    names: tuple[str, ...],
    norm: str,
    eps: float,
    seed: int,
    clock: Callable[[], float] = time.process_time,
) -> Outcome:
    """Run pyautoattack's attacks of the same names."""
    from pyautoattack import AutoAttack

    model = Scaled(net)
    official = {"linf": "Linf", "l2": "L2", "l1": "L1"}[norm]
    attacks = [name.replace("_", "-") for name in names]
    start = clock()
    device = str(images.device)
    adversary = AutoAttack(
        model, norm=official, eps=eps / 255, seed=seed, version="custom", attacks=attacks, device=device
    )
    # What version="standard" sets.
    adversary.apgd.n_restarts = L1_RESTARTS if norm == "l1" else 1
    adversary.apgd_targeted.n_restarts = adversary.fab.n_restarts = 1
    adversary.apgd_targeted.n_target_classes = 5 if norm == "l1" else 9
    adversary.apgd.use_largereps = adversary.apgd_targeted.use_largereps = norm == "l1"
    adversary.fab.n_target_classes = 9
    adversary.square.n_queries = 5000
    result = adversary.run_standard_evaluation(images / 255, labels, batch_size=len(images))
    seconds = clock() - start
    forwards = model.forwards
    with torch.no_grad():
        robust = model(result[0] if isinstance(result, tuple) else result).argmax(dim=1) == labels
    return Outcome(robust, forwards, seconds)


def adv_lib(
    net: nn.Module, images: Tensor, labels: Tensor, names: tuple[str, ...], norm: str, eps: float, seed: int
) -> Outcome:
    """adv-lib's APGD, those of `names` that it is; it has no Square, and its FAB comes from AutoAttack."""
    # It imports a plotting server that does not install everywhere and is not used here.
    if "visdom" not in sys.modules and find_spec("visdom") is None:
        sys.modules["visdom"] = types.ModuleType("visdom")
    from adv_lib.attacks import apgd, apgd_targeted

    model = Scaled(net)
    start = time.process_time()
    robust = torch.ones(len(images), dtype=torch.bool)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for name in names:
            power = {"linf": float("inf"), "l2": 2.0, "l1": 1.0}[norm]
            shared = {"eps": eps / 255, "norm": power, "use_large_reps": norm == "l1"}
            if name == "apgd_t":
                found = apgd_targeted(model, images / 255, labels, num_targets=CLASSES - 1, **shared)
            elif name in ("apgd_ce", "apgd_dlr"):
                found = apgd(model, images / 255, labels, loss_function=name[5:], **shared)
            else:
                continue
            with torch.no_grad():
                robust &= net(255.0 * found).argmax(dim=1) == labels
    return Outcome(robust, model.forwards, time.process_time() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--norm", choices=("linf", "l2", "l1"), default="linf")
    parser.add_argument("--eps", type=float, default=16.0, help="radius, 0..255 units (default 16)")
    parser.add_argument("--images", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=2, help="runs of each implementation (default 2)")
    parser.add_argument("--attacks", nargs="+", default=STANDARD, help="names in ATTACK.SPECS, run one after the other")
    parser.add_argument("--nets", nargs="+", default=list(architectures()))
    parser.add_argument("--head", choices=("class", "parts"), default="class")
    parser.add_argument("--config-file", help="with --head parts: of the model")
    parser.add_argument("--peers", nargs="+", default=(), metavar="DIR", help="with --head parts: checkouts of others")
    parser.add_argument("--opts", nargs="+", default=(), help="with --head parts: KEY VALUE pairs, MODEL.WEIGHTS first")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.head == "parts":
        from crosscheck_parts import crosscheck_parts

        attacks = () if args.attacks is STANDARD else args.attacks
        crosscheck_parts(args.config_file, args.opts, args.peers, attacks=attacks, eps=args.eps, images=args.images)
        return
    others = {"pyautoattack": autoattack, "adv_lib": adv_lib}
    missing = [name for name in others if find_spec(name) is None]
    if missing:
        print(f"not installed, left out: {', '.join(missing)}", file=sys.stderr)
    rows = []
    images, labels = toy_images(args.images, seed=1)
    names = tuple(args.attacks)
    for kind in args.nets:
        net = train(architectures()[kind], args.norm, args.eps)
        clean = (net(images).argmax(dim=1) == labels).float().mean()
        outcomes: dict[str, list[Outcome]] = {"part_robust": []}
        for seed in range(args.seeds):
            outcomes["part_robust"].append(ours(net, images, labels, names, NORM=args.norm, EPS=args.eps, SEED=seed))
            for name, run in others.items():
                if name not in missing and (name != "adv_lib" or any("apgd" in attack for attack in names)):
                    found = run(net, images, labels, names, args.norm, args.eps, seed)
                    outcomes.setdefault(name, []).append(found)
        reference = torch.stack([outcome.robust for outcome in outcomes["part_robust"]]).all(dim=0)
        for name, found in outcomes.items():
            verdicts = torch.stack([outcome.robust for outcome in found])
            own = ", ".join(str(int(outcome.robust.sum())) for outcome in found)
            rows.append(
                {
                    "net": f"{kind} (clean {clean:.1%})",
                    "implementation": name,
                    "robust images, per seed": own,
                    "broken by it alone": int((reference & ~verdicts.all(dim=0)).sum()),
                    "broken by ours alone": int((~reference & verdicts.all(dim=0)).sum()),
                    "forwards": sum(outcome.forwards for outcome in found) // len(found),
                    "CPU seconds": round(sum(outcome.seconds for outcome in found) / len(found), 1),
                }
            )
        print(tabulate(rows[-len(outcomes) :], headers="keys", tablefmt="github"), flush=True)
    print(f"\n{args.images} images, {args.norm}, eps {args.eps:g} of 255: {' '.join(names)}")
    print(tabulate(rows, headers="keys", tablefmt="github"))


if __name__ == "__main__":
    main()
