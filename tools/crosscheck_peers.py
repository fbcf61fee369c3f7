"""Attacks on the class of other implementations, with what AutoAttack sets where it calls itself standard.

What they find is projected to the threat model, and the verdict on it is our model's.

Letters: N images of (3, H, W).
"""

from __future__ import annotations

import math
import sys
import time
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec

import torch
from torch import Tensor, nn

from part_robust.attacks import ThreatModel
from part_robust.attacks.apgd import L1_RESTARTS
from part_robust.attacks.threat_model import NORMS
from part_robust.utils.errors import UserError

# What AutoAttack calls standard, in its order.
STANDARD = ("apgd_ce", "apgd_t", "fab_t", "square")
# Attacks whose result no seed changes.
DETERMINISTIC = ("fab_t", "fmn")
# Attacks that take many times as long as others, in this order.
EXPENSIVE = ("apgd_t", "fab_t", "square")
STEPS, QUERIES, TARGETS = 100, 5000, 9

# (model of images in 0..1, images in 0..1, labels) -> attacked images in 0..1.
Run = Callable[[nn.Module, Tensor, Tensor], Tensor]


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


@dataclass(frozen=True)
class Peer:
    """Another implementation.

    Attributes:
        package: to be installed with pip.
        attacks: norms by name, which is that in ATTACK.SPECS where the attack is one of them.
        run: net (0..255), images (N, 3, H, W) in 0..255, labels (N,), names, norm, eps (0..255), seed -> outcome.
    """

    package: str
    attacks: Mapping[str, Sequence[str]]
    run: Callable[[nn.Module, Tensor, Tensor, Sequence[str], str, float, int], Outcome]

    def names(self, norm: str, wanted: Sequence[str] | None = None) -> list[str]:
        """Return its attacks under a norm, or those of `wanted` that it has."""
        return [name for name in wanted or self.attacks if norm in self.attacks.get(name, ())]


class Scaled(nn.Module):
    """A net of ours for those who want images in 0..1; counts images."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.forwards = 0
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        self.forwards += len(images)
        return self.net(255.0 * images)


@torch.no_grad()
def still_right(net: nn.Module, images: Tensor, labels: Tensor, found: Tensor, norm: str, eps: float) -> Tensor:
    """Return bool (N,), whether the class is right on what an attack found, projected to the threat model.

    Args:
        net: of images in 0..255.
        images: (N, 3, H, W), the originals, 0..255.
        labels: (N,).
        found: (N, 3, H, W), 0..255.
        norm: of the threat model.
        eps: radius, 0..255 units.
    """
    threat_model = ThreatModel(norm, eps)
    # Values that are not finite are replaced by the original's.
    allowed = threat_model.project(torch.where(found.isfinite(), found, images), images)
    threat_model.verify(allowed, images)
    return net(allowed).argmax(dim=1) == labels


def autoattack(
    net: nn.Module,
    images: Tensor,
    labels: Tensor,
    names: Sequence[str],
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
    targets = _targets(net, images)
    adversary.apgd.n_restarts = L1_RESTARTS if norm == "l1" else 1
    adversary.apgd_targeted.n_restarts = adversary.fab.n_restarts = 1
    adversary.apgd_targeted.n_target_classes = min(5, targets) if norm == "l1" else targets
    adversary.apgd.use_largereps = adversary.apgd_targeted.use_largereps = norm == "l1"
    adversary.fab.n_target_classes = targets
    adversary.square.n_queries = QUERIES
    result = adversary.run_standard_evaluation(images / 255, labels, batch_size=len(images))
    seconds = clock() - start
    found = 255 * (result[0] if isinstance(result, tuple) else result)
    return Outcome(still_right(net, images, labels, found, norm, eps), model.forwards, seconds)


def adv_lib(
    net: nn.Module, images: Tensor, labels: Tensor, names: Sequence[str], norm: str, eps: float, seed: int
) -> Outcome:
    """Run adv-lib's attacks, those of `names` that it has; its FAB is AutoAttack's, and it has no Square."""
    # It imports a plotting server that does not install everywhere and is not used here.
    if "visdom" not in sys.modules and find_spec("visdom") is None:
        sys.modules["visdom"] = types.ModuleType("visdom")
    from adv_lib import attacks

    power = {"linf": math.inf, "l2": 2.0, "l1": 1.0}[norm]
    shared = {"eps": eps / 255, "norm": power, "use_large_reps": norm == "l1"}
    runs = {
        "apgd_ce": partial(attacks.apgd, loss_function="ce", **shared),
        "apgd_dlr": partial(attacks.apgd, loss_function="dlr", **shared),
        "apgd_t": partial(attacks.apgd_targeted, num_targets=_targets(net, images), **shared),
        "fmn": partial(attacks.fmn, norm=power, steps=STEPS),
    }
    if norm == "linf":
        runs["pgd"] = partial(attacks.pgd_linf, ε=eps / 255, steps=STEPS, loss_function="dl")
    return _each(runs, net, images, labels, names, norm, eps, seed)


def torch_attacks(
    net: nn.Module, images: Tensor, labels: Tensor, names: Sequence[str], norm: str, eps: float, seed: int
) -> Outcome:
    """Run torchattacks' attacks of the same names; it has none of them under L1."""
    import torchattacks

    shared = {"norm": {"linf": "Linf", "l2": "L2"}[norm], "eps": eps / 255, "seed": seed}
    classes = {"n_classes": _targets(net, images) + 1}
    kinds: dict[str, Callable[[nn.Module], Run]] = {
        "apgd_ce": partial(torchattacks.APGD, steps=STEPS, loss="ce", **shared),
        "apgd_dlr": partial(torchattacks.APGD, steps=STEPS, loss="dlr", **shared),
        "apgd_t": partial(torchattacks.APGDT, steps=STEPS, **classes, **shared),
        "fab_t": partial(torchattacks.FAB, steps=STEPS, multi_targeted=True, **classes, **shared),
        "square": partial(torchattacks.Square, n_queries=QUERIES, resc_schedule=False, **shared),
    }

    def run(kind: Callable[[nn.Module], Run], model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        return kind(model)(images, labels)

    runs = {name: partial(run, kind) for name, kind in kinds.items()}
    return _each(runs, net, images, labels, names, norm, eps, seed)


def _targets(net: nn.Module, images: Tensor) -> int:
    """Return how many classes targeted attacks aim at."""
    with torch.no_grad():
        return min(TARGETS, net(images[:1]).shape[1] - 1)


def _each(
    runs: Mapping[str, Run],
    net: nn.Module,
    images: Tensor,
    labels: Tensor,
    names: Sequence[str],
    norm: str,
    eps: float,
    seed: int,
) -> Outcome:
    """Run those attacks of `names` that there are, each on all images."""
    model = Scaled(net)
    start = time.process_time()
    robust = torch.ones_like(labels, dtype=torch.bool)
    devices = [images.device] if images.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        for name in names:
            if name in runs:
                found = runs[name](model, images / 255, labels)
                robust &= still_right(net, images, labels, 255 * found.detach(), norm, eps)
    return Outcome(robust, model.forwards, time.process_time() - start)


_ALL = dict.fromkeys((*STANDARD, "apgd_dlr"), NORMS)
PEERS = {
    "pyautoattack": Peer("pyautoattack", _ALL, autoattack),
    "torchattacks": Peer("torchattacks", dict.fromkeys(_ALL, ("linf", "l2")), torch_attacks),
    "adv_lib": Peer(
        "adv-lib", {**dict.fromkeys(("apgd_ce", "apgd_t", "apgd_dlr", "fmn"), NORMS), "pgd": ("linf",)}, adv_lib
    ),
}


def installed_peers(wanted: Sequence[str] = ()) -> dict[str, Peer]:
    """Return the peers that can be imported, and name the others on the terminal.

    Args:
        wanted: names; none: all.

    Raises:
        UserError: a name is unknown, or no peer is installed.
    """
    wanted = list(wanted) or list(PEERS)
    if unknown := [name for name in wanted if name not in PEERS]:
        raise UserError(f"--peers must be of {', '.join(PEERS)}, got {unknown[0]!r}")
    missing = [name for name in wanted if find_spec(name) is None]
    remedy = f"pip install --no-deps {' '.join(PEERS[name].package for name in missing)}"
    if len(missing) == len(wanted):
        raise UserError(f"--peers must be installed, got none of {', '.join(missing)}: {remedy}")
    if missing:
        print(f"not installed, left out: {', '.join(missing)} ({remedy})", file=sys.stderr)
    return {name: PEERS[name] for name in wanted if name not in missing}
