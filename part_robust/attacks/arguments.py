"""Keys of the config that all attacks have, and the arguments of their constructors that these give."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from detectron2.config import CfgNode

from part_robust.attacks.objective import get_objective
from part_robust.attacks.threat_model import ThreatModel


def shared_keys(name: str) -> CfgNode:
    """Return the keys that all attacks have, with their defaults.

    Args:
        name: of the attack, in ATTACK_REGISTRY.
    """
    node = CfgNode()
    # Name in ATTACK_REGISTRY: "PGD", "APGD", "FAB", "Square", "RandomNoise", or "NFGSM" for training.
    node.NAME = name
    # What the attack maximises, a name of attacks/objective.py. Class logits: "cross_entropy", "margin", "dlr", and
    # for APGD "targeted_margin" and "targeted_dlr". Dense parts: "pixel_cross_entropy", "masked_cross_entropy",
    # "balanced_cross_entropy", "jensen_shannon", "soft_wrong_pixels", "segpgd", "cospgd". Detectors: "part_loss"
    # (matched anew at every step), "part_loss_fixed" (matched on the image before the attack), or "joint" and
    # "joint_fixed": class and part loss as in training. These four take dense parts too, with their pixel loss. Of
    # a detector's part loss "part_class_loss", "part_box_loss" and their "_fixed", one term alone; "hide_parts":
    # every score below the threshold at which a part counts as found. FAB has a built-in loss and ignores this.
    node.OBJECTIVE = "cross_entropy"
    # Threat model: "linf", "l2" or "l1", radius in 0..255 units (in 0..1 units, 3.0 is 765.0 here).
    node.NORM = "linf"
    node.EPS = 8.0
    # Steps of a run: gradient steps, queries of Square, samples of RandomNoise.
    node.STEPS = 10
    # Independent runs; the worst result of each image is kept.
    node.RESTARTS = 1
    # Random numbers depend on this seed, the image id, the restart and the target only.
    node.SEED = 0
    # Follow the whole gradient, also where a model detaches it in training (boxes between DINO's decoder layers).
    # False repeats the published evaluation, which overestimates robustness.
    node.FULL_GRADIENT = True
    # Detectors that read the class from object queries, which are chosen among the image's pixels: take the
    # gradient of so many times the queries, or of all pixels, while the outputs stay the model's own. Otherwise
    # pixels that are not chosen get no gradient. 1: the model's own; 4 as in check C21, for one more forward pass
    # at each step.
    node.QUERY_FACTOR = 1
    # Remove images from the batch whose result cannot get worse: those whose class is wrong (with part objectives,
    # those without a right pixel). Which attacks succeed is the same as without. PGD needs KEEP best for it.
    # COMPACT_EVERY: steps between two removals.
    node.EARLY_STOP = False
    node.COMPACT_EVERY = 10
    # Keep the loss of every step, for convergence plots and checks.
    node.RECORD_HISTORY = False
    return node


def shared_arguments(node: Mapping) -> dict[str, Any]:
    """Return the arguments of `Attack` by the keys of `Attack.default_config`."""
    return {
        "threat_model": ThreatModel(norm=node["NORM"], eps=node["EPS"]),
        "objective": get_objective(node["OBJECTIVE"]),
        "steps": node["STEPS"],
        "restarts": node["RESTARTS"],
        "seed": node["SEED"],
        "early_stop": node["EARLY_STOP"],
        "compact_every": node["COMPACT_EVERY"],
        "record_history": node["RECORD_HISTORY"],
    }
