"""Models whose answers to an attack are known, or that refuse what an attack must not ask for."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from part_robust.attacks import PGD, Attack, AttackResult, attack_mode, build_attack

ATTACKS = {
    "pgd": {"NAME": "PGD", "STEP_SIZE": 1.0, "KEEP": "best", "STEPS": 8},
    "apgd": {"NAME": "APGD", "STEPS": 12},
    "apgd_l2": {"NAME": "APGD", "STEPS": 12, "NORM": "l2"},
    "apgd_schedule": {"NAME": "APGD", "STEPS": 12, "RADIUS_SCHEDULE": ((2.0, 0.3), (1.5, 0.3), (1.0, 0.4))},
    "apgd_t": {"NAME": "APGD", "STEPS": 6, "OBJECTIVE": "targeted_dlr", "NUM_TARGETS": 3},
    "apgd_malt": {"NAME": "APGD", "STEPS": 6, "OBJECTIVE": "targeted_margin", "TARGET_RANKING": "malt"},
    "fab": {"NAME": "FAB", "STEPS": 6, "NUM_TARGETS": 2, "RESTARTS": 2},
    "fab_l2": {"NAME": "FAB", "STEPS": 6, "NUM_TARGETS": 2, "NORM": "l2"},
    "square": {"NAME": "Square", "STEPS": 30, "OBJECTIVE": "margin"},
    "square_l2": {"NAME": "Square", "STEPS": 30, "OBJECTIVE": "margin", "NORM": "l2"},
    "noise": {"NAME": "RandomNoise", "STEPS": 4, "OBJECTIVE": "margin"},
    "pgd_l1": {"NAME": "PGD", "STEP_SIZE": 15.0, "KEEP": "best", "STEPS": 8, "NORM": "l1"},
    "apgd_l1": {"NAME": "APGD", "STEPS": 12, "NORM": "l1"},
    "fab_l1": {"NAME": "FAB", "STEPS": 6, "NUM_TARGETS": 2, "NORM": "l1", "RESTARTS": 2},
    "square_l1": {"NAME": "Square", "STEPS": 30, "OBJECTIVE": "margin", "NORM": "l1"},
    "noise_l1": {"NAME": "RandomNoise", "STEPS": 4, "OBJECTIVE": "margin", "NORM": "l1"},
}
# Power of the dual norm.
DUAL = {"linf": 1.0, "l2": 2.0, "l1": float("inf")}
EPS = {"linf": 4.0, "l2": 12.0, "l1": 60.0}


class Linear(nn.Module):
    """Logits linear in the pixels: distances to class boundaries are known in closed form."""

    def __init__(self, classes: int = 5, side: int = 5) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(classes)
        self.weight = nn.Parameter(torch.randn(classes, 3 * side * side, generator=generator) / 50)

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1) @ self.weight.T

    def distances(self, images: Tensor, labels: Tensor, norm: str) -> Tensor:
        """(N,) to the nearest other class, as long as no pixel leaves its range."""
        logits = self(images)
        gaps = logits.gather(1, labels[:, None]) - logits
        slopes = (self.weight[labels][:, None] - self.weight[None]).flatten(2)
        lengths = slopes.norm(DUAL[norm], dim=2)
        return (gaps / lengths).scatter(1, labels[:, None], float("inf")).amin(dim=1).detach()


class Curved(nn.Module):
    """A small net with random weights: many directions, bent boundaries."""

    def __init__(self, classes: int = 5, side: int = 5) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(100 + classes)
        self.first = nn.Parameter(torch.randn(16, 3 * side * side, generator=generator) / 150)
        self.second = nn.Parameter(torch.randn(classes, 16, generator=generator))

    def forward(self, images: Tensor) -> Tensor:
        return torch.sin((images.flatten(1) - 128.0) @ self.first.T) @ self.second.T


class DensePart(nn.Module):
    """Part logits (N, 4, H, W) from each pixel and its neighbours."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.layers = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.GELU(), nn.Conv2d(8, 4, 3, padding=1))
        for parameter in self.parameters():
            parameter.requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        return self.layers((images - 128.0) / 20.0)


def pictures(count: int = 6, side: int = 5, seed: int = 1) -> Tensor:
    return 100 + 50 * torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


def run(model: nn.Module, attack: Attack | dict, images: Tensor, labels: Tensor, keys=None, **options) -> AttackResult:
    """Attacks inside `attack_mode`; keys count up unless given."""
    attack = build_attack(attack) if isinstance(attack, dict) else attack
    with attack_mode(model) as inner:
        return attack(inner, images, labels, keys=torch.arange(len(images)) if keys is None else keys, **options)


def spec(name: str, **changes) -> dict:
    node = {**ATTACKS[name], **changes}
    return {"EPS": EPS[node.get("NORM", "linf")], **node}


class Bold(PGD):
    """An attack of a user's, which has keys of its own, one of them without a default, and another number of steps."""

    own_keys = ("HASTE",)

    @classmethod
    def default_config(cls):
        node = super().default_config()
        node.BOLDNESS = 3.0
        node.STEPS = 7
        return node

    @classmethod
    def from_config(cls, node):
        attack = super().from_config(node)
        attack.traits = (node["BOLDNESS"], node.get("HASTE"))
        return attack
