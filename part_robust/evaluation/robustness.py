"""A model under attack, and its evaluation next to the clean one."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Iterable, Mapping

import torch
from detectron2.evaluation import DatasetEvaluator, inference_on_dataset
from detectron2.utils import comm
from torch import nn

from part_robust.attacks import Attack, attack_batch, attack_view
from part_robust.utils.processes import prepare_to_wait

logger = logging.getLogger(__name__)


class AttackedModel(nn.Module):
    """Wraps a part classifier: every batch is attacked first, then goes through the model.

    Runs through detectron2's `inference_on_dataset` like the model itself (the pattern of `GeneralizedRCNNWithTTA`).
    Random starts depend on the attack's seed and the `image_id` alone.
    """

    def __init__(self, model: nn.Module, attack: Attack) -> None:
        super().__init__()
        self.model = model
        self.attack = attack
        self.images_attacked = 0
        # Images whose gradient was zero throughout: their result says nothing.
        self.zero_gradient_images = 0

    def forward(self, batched_inputs: list[dict]) -> list[dict]:
        keys = torch.tensor([item["image_id"] for item in batched_inputs], dtype=torch.int64)
        with attack_view(self.model, self.attack.full_gradient) as inner:
            result, padding = attack_batch(self.attack, inner, batched_inputs, keys)
            self.images_attacked += len(batched_inputs)
            self.zero_gradient_images += result.num_zero_gradient
            with torch.no_grad():
                return inner.inference(result.images, padding)


def log_attack(name: str, attack: Attack) -> None:
    """Logs which attack begins: its threat model and steps for the terminal, every setting for log.txt."""
    threat = attack.threat_model
    logger.info(
        "Attack %s: %s, %s %g/255, %d steps", name, type(attack).__name__, threat.norm, threat.eps, attack.steps
    )
    logger.debug("Settings of attack %s: %s", name, attack.describe())


def evaluate_under_attacks(
    model: nn.Module,
    data_loader: Iterable[list[dict]],
    evaluator: DatasetEvaluator,
    attacks: Mapping[str, Attack],
) -> tuple[OrderedDict, list[str]]:
    """Clean evaluation and one per attack, over the same loader.

    Args:
        model: part classifier, also inside DistributedDataParallel.
        data_loader: batches of the mapper's dicts.
        evaluator: it is reset before each pass.
        attacks: by the name that the results carry.

    Returns:
        `{"classification": {...}, "classification_<attack>": {...}, ...}` on the main process, empty elsewhere; and
        warnings a reader of the numbers must see.
    """
    prepare_to_wait()
    results: OrderedDict = OrderedDict(inference_on_dataset(model, data_loader, evaluator) or {})
    warnings = []
    for name, attack in attacks.items():
        log_attack(name, attack)
        attacked = AttackedModel(model, attack)
        for task, metrics in (inference_on_dataset(attacked, data_loader, evaluator) or {}).items():
            results[f"{task}_{name}"] = metrics
        counts = comm.gather((attacked.zero_gradient_images, attacked.images_attacked), dst=0)
        blind, total = (sum(values) for values in zip(*counts, strict=True)) if counts else (0, 0)
        if blind:
            warnings.append(
                f"{name}: {blind} of {total} images had an all-zero gradient at every step; "
                "a failed attack on them is not evidence of robustness, and robust accuracy is overestimated"
            )
    return results, warnings
