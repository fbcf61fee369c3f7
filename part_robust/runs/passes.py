"""Measures how far trainings and evaluations are, in images that pass through a backbone.

A step of a training or of an attack is one pass of each of its images, so passes take about the same time throughout.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.modeling import Backbone
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from part_robust.configured_attacks import build_attacks, training_attack
from part_robust.engine.best_metric import validation_datasets


def expected_passes(cfg: CfgNode) -> int:
    """Estimates the passes of a training, its evaluations on the way, and the evaluation of its best checkpoint.

    Attacks leave out images that they need not change any more, so it is an upper bound.

    Args:
        cfg: complete, with SOLVER.MAX_ITER, and ATTACK.EVAL instead of TEST.TIER.
    """
    adversarial = cfg.ATTACK.TRAIN.ENABLED
    step = 1 + (training_attack(cfg).steps if adversarial else 0)
    training = cfg.SOLVER.MAX_ITER * cfg.SOLVER.IMS_PER_BATCH * step
    evaluations = cfg.SOLVER.MAX_ITER // cfg.TEST.EVAL_PERIOD if cfg.TEST.EVAL_PERIOD > 0 else 0
    watched = _evaluation(cfg, validation_datasets(cfg), cfg.ATTACK.EVAL_DURING_TRAINING if adversarial else ())
    return training + evaluations * watched + _evaluation(cfg, cfg.DATASETS.TEST, cfg.ATTACK.EVAL)


def _evaluation(cfg: CfgNode, datasets: tuple[str, ...], attacks: tuple[str, ...]) -> int:
    """An attack also scores its first and its last images, and the evaluator classifies the last ones again."""
    passes = 1 + sum(attack.steps * attack.restarts + 3 for attack in build_attacks(cfg, attacks).values())
    return passes * sum(len(DatasetCatalog.get(name)) for name in datasets)


@contextmanager
def passes_counted(count: Callable[[int], object]) -> Iterator[None]:
    """Calls `count` with the number of images whenever a backbone gets some, in any model of this process."""

    def before_forward(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if isinstance(module, Backbone):
            count(len(inputs[0]))

    handle = register_module_forward_pre_hook(before_forward)
    try:
        yield
    finally:
        handle.remove()
