"""Which evaluation a journal belongs to: what must be the same for finished batches to be used again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.utils import comm
from torch import nn

import part_robust
from part_robust.config import default_cfg
from part_robust.evaluation.eps_curve import curve_attack_name
from part_robust.evaluation.external import source_sha256
from part_robust.evaluation.local import LocalTier
from part_robust.evaluation.plan import Plan
from part_robust.evaluation.record import image_list_sha256
from part_robust.evaluation.tiers import Tier
from part_robust.utils.devices import module_device
from part_robust.utils.files import file_sha256

# Config nodes that change what the numbers are.
KEYS_THAT_MUST_MATCH = ("MODEL", "INPUT")
# Keys that the first journals do not have: left out at their default, so that those are continued.
LATER_KEYS = {
    "MODEL": ("EXTERNAL",),
    "INPUT": (
        *("TEST_INTERPOLATION", "PART_LABELS", "ROTATION", "COLOR_JITTER", "RAND_AUGMENT", "ERASING_PROB"),
        *("CUTMIX_PROB", "CUTMIX_ALPHA", "MIXUP_PROB", "MIXUP_ALPHA"),
    ),
}


def evaluation_identity(
    cfg: CfgNode, plan: Plan, model: nn.Module, weights: str, weights_of: str, records: Sequence[dict]
) -> dict[str, str]:
    """Return what must be the same for batches to belong together.

    Folders need not be, and with our own attacks neither the batch size nor the number of processes.

    Args:
        cfg: complete.
        plan: for these images.
        model: with its weights.
        weights: local file they came from; "" for random ones.
        weights_of: "MODEL.WEIGHTS" or "last_checkpoint".
        records: of the data set that are evaluated.
    """
    decisive = {}
    for name in KEYS_THAT_MUST_MATCH:
        node = cfg[name].clone()
        node.defrost()
        if name == "MODEL":
            node.WEIGHTS = node.DEVICE = node.PRETRAINING = ""
        for key in LATER_KEYS[name]:
            if node[key] == default_cfg()[name][key]:
                del node[key]
        decisive[name] = node.dump()
    decisive["FULL_GRADIENT"] = cfg.ATTACK.FULL_GRADIENT
    if source := source_sha256(cfg):
        decisive["callable"] = [source, _weights_sha256(model)]
    attacks = {
        "tiers": [_describe_tier(tier) for tier in plan.tiers],
        "attacks": {name: attack.describe() for name, attack in plan.attacks().items()},
        "curve": sorted(map(curve_attack_name, plan.curve)),
    }
    # What the other backend finds depends on an image's batch.
    batches = "any"
    if cfg.TEST.BACKEND != "own":
        batches = f"of {cfg.DATALOADER.TEST_BATCH_SIZE} in {comm.get_world_size()} processes"
    # Journals of before have no entry, and need none.
    predictions = {"saved predictions": "True"} if plan.save_predictions else {}
    return {
        "config": _sha256(decisive),
        "checkpoint": file_sha256(weights) or _weights_sha256(model),
        "weights are those of": weights_of,
        "images": image_list_sha256([record["image_id"] for record in records]),
        "tiers and attacks": _sha256(attacks),
        "backend": cfg.TEST.BACKEND,
        "batches": batches,
        "metrics": str(bool(cfg.TEST.PART_BOX_AP)),
        "saved adversarial images": plan.save_adversarials,
        **predictions,
        "device": module_device(model).type,
        "part_robust": part_robust.__version__,
    }


def _describe_tier(tier: Tier) -> dict[str, Any]:
    described = {"name": tier.name, "kind": tier.kind, "attacks": list(tier.attacks)}
    # Tiers without rounds have the identity that earlier versions gave them.
    described |= tier.describe() if isinstance(tier, LocalTier) else {}
    return described | ({"rounds": tier.rounds.describe()} if tier.rounds else {})


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _weights_sha256(model: nn.Module) -> str:
    """Return the hash of weights that come from no file."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
