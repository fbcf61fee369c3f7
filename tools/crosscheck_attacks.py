#!/usr/bin/env python
"""Our attacks against other implementations: on three small nets trained within seconds, or on a trained model.

python tools/crosscheck_attacks.py
python tools/crosscheck_attacks.py --norm l2 --eps 250 --images 100 --seeds 3
python tools/crosscheck_attacks.py --norm l1 --eps 2000 --images 100 --seeds 3

Compares robust accuracy, images sent through the model forward, and seconds with pyautoattack (the official AutoAttack,
pip install part_robust[aa]), torchattacks and adv-lib (written independently), as far as they are installed.

With --record: an evaluation of a trained model of any family, made there if it is missing; the others get the images
that it left (crosscheck_model.py). The same command again continues where it was interrupted.

python tools/crosscheck_attacks.py --config-file part_shapes/dino_sequential_adv.yaml \
    --weights output/.../model_best.pth --record output/.../crosscheck

With --head parts: our attacks on dense parts and those of others' checkouts, on a trained model (crosscheck_parts.py).

python tools/crosscheck_attacks.py --head parts --config-file part_shapes/deeplab_segmenter_adv.yaml --eps 8 \
    --peers DIR/Robust-Segmentation-Evaluation DIR/adversarial-library --weights output/.../model_best.pth
"""

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from crosscheck_peers import STANDARD, Outcome, Peer, installed_peers
from tabulate import tabulate
from torch import Tensor, nn
from torch.nn import functional as F

from part_robust.attacks import attack_mode, build_attack
from part_robust.attacks.apgd import L1_RESTARTS
from part_robust.config import attack_spec, get_part_robust_cfg
from part_robust.utils.errors import PREPARATION, user_errors

CLASSES = 10
# A multiple of 3 for the patches; of 5 since pyautoattack's Square fails on others under L2 and L1.
SIDE = 15


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
    names: Sequence[str],
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


def crosscheck_toys(
    names: Sequence[str], nets: Sequence[str], peers: Mapping[str, Peer], norm: str, eps: float, count: int, seeds: int
) -> None:
    """Print a table of ours and of every peer on the small nets."""
    rows = []
    images, labels = toy_images(count, seed=1)
    for kind in nets:
        net = train(architectures()[kind], norm, eps)
        clean = (net(images).argmax(dim=1) == labels).float().mean()
        outcomes: dict[str, list[Outcome]] = {"part_robust": []}
        for seed in range(seeds):
            outcomes["part_robust"].append(ours(net, images, labels, names, NORM=norm, EPS=eps, SEED=seed))
            for name, peer in peers.items():
                if own := peer.names(norm, names):
                    found = peer.run(net, images, labels, own, norm, eps, seed)
                    outcomes.setdefault(name, []).append(found)
        reference = torch.stack([outcome.robust for outcome in outcomes["part_robust"]]).all(dim=0)
        for name, found in outcomes.items():
            verdicts = torch.stack([outcome.robust for outcome in found])
            rows.append(
                {
                    "net": f"{kind} (clean {clean:.1%})",
                    "implementation": name,
                    "robust images, per seed": ", ".join(str(int(outcome.robust.sum())) for outcome in found),
                    "broken by it alone": int((reference & ~verdicts.all(dim=0)).sum()),
                    "broken by ours alone": int((~reference & verdicts.all(dim=0)).sum()),
                    "forwards": sum(outcome.forwards for outcome in found) // len(found),
                    "CPU seconds": round(sum(outcome.seconds for outcome in found) / len(found), 1),
                }
            )
        print(tabulate(rows[-len(outcomes) :], headers="keys", tablefmt="github"), flush=True)
    print(f"\n{count} images, {norm}, eps {eps:g} of 255: {' '.join(names)}")
    print(tabulate(rows, headers="keys", tablefmt="github"))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--norm", choices=("linf", "l2", "l1"), help="default: linf; of a trained model its config's")
    parser.add_argument("--eps", type=float, help="radius, 0..255 units (default 16; of a trained model its config's)")
    parser.add_argument("--images", type=int, help="default 60; of a trained model 200")
    parser.add_argument("--seeds", type=int, default=2, help="runs of each implementation (default 2)")
    parser.add_argument(
        "--attacks",
        nargs="+",
        help="names in ATTACK.SPECS, run one after the other (default: the standard set; of a trained model every one "
        "that a peer has)",
    )
    parser.add_argument("--nets", nargs="+", default=list(architectures()), help="small nets that are trained")
    parser.add_argument("--head", choices=("class", "parts"), default="class")
    parser.add_argument("--config-file", help="of a trained model")
    parser.add_argument("--weights", default="", metavar="FILE", help="of a trained model: its MODEL.WEIGHTS")
    parser.add_argument("--record", type=Path, metavar="FOLDER", help="evaluation of a trained model; made if missing")
    parser.add_argument("--tier", default="screen", help="of the evaluation (default screen)")
    parser.add_argument(
        "--peers",
        nargs="+",
        default=(),
        help="other implementations (default: all that are installed); with --head parts folders, checkouts of others",
    )
    parser.add_argument("--opts", nargs="+", default=(), help="of a trained model: KEY VALUE pairs for its config")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with user_errors(*PREPARATION):
        if args.head == "parts":
            from crosscheck_parts import crosscheck_parts

            opts = [*(["MODEL.WEIGHTS", args.weights] if args.weights else []), *args.opts]
            crosscheck_parts(
                *(args.config_file, opts, args.peers),
                attacks=args.attacks or (),
                eps=16.0 if args.eps is None else args.eps,
                images=args.images or 60,
            )
        elif args.record or args.weights or args.config_file:
            from crosscheck_model import crosscheck_model, evaluate_ours

            if not args.record:
                parser.error("a trained model needs --record FOLDER, where its evaluation is or will be")
            evaluate_ours(args)
            peers = installed_peers(args.peers)
            crosscheck_model(args.record, args.weights, args.tier, peers, attacks=args.attacks, seeds=args.seeds)
        else:
            eps = 16.0 if args.eps is None else args.eps
            peers = installed_peers(args.peers)
            names, norm = args.attacks or STANDARD, args.norm or "linf"
            crosscheck_toys(names, args.nets, peers, norm, eps, args.images or 60, args.seeds)


if __name__ == "__main__":
    main()
