"""The trainer: detectron2's `DefaultTrainer` with part data, attacked batches and attacked evaluation."""

from __future__ import annotations

import functools
import logging
import weakref
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader, build_detection_train_loader
from detectron2.engine import DefaultTrainer, HookBase, defaults, hooks
from detectron2.evaluation import DatasetEvaluators
from detectron2.utils import comm
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from part_robust.attacks import Attack, build_attack, get_objective
from part_robust.config import attack_spec
from part_robust.data import PartDatasetMapper
from part_robust.engine.adversarial_loader import AdversarialLoader
from part_robust.engine.checkpoint import PartCheckpointer
from part_robust.engine.hooks import AttackSchedule, BestCheckpoint
from part_robust.engine.optimizer import build_optimizer
from part_robust.evaluation import build_evaluator, evaluate_under_attacks
from part_robust.modeling import PART_SEGMENTER_REGISTRY
from part_robust.modeling.gradients import cuts_gradient

logger = logging.getLogger(__name__)


class PartTrainer(DefaultTrainer):
    """Trains on DATASETS.TRAIN, on attacked batches if ATTACK.TRAIN.ENABLED, and watches DATASETS.VAL."""

    def __init__(self, cfg: CfgNode) -> None:
        with _ddp_without_device_ids(cfg.MODEL.DEVICE):
            super().__init__(cfg)

    def build_hooks(self) -> list[HookBase]:
        cfg = self.cfg
        # The parent builds its own checkpointer just before it asks for hooks, with no seam to choose the class.
        self.checkpointer = PartCheckpointer(self.model, cfg.OUTPUT_DIR, trainer=weakref.proxy(self))
        result = super().build_hooks()
        if cfg.ATTACK.TRAIN.ENABLED:
            loader = AdversarialLoader(
                self.data_loader, unwrap(self.model), aimed(cfg, cfg.ATTACK.TRAIN), cfg.ATTACK.TRAIN.FRACTION
            )
            self.data_loader = loader
            result.insert(0, AttackSchedule(loader, cfg.ATTACK.TRAIN.EPS_WARMUP_ITERS))
        if comm.is_main_process() and watched_datasets(cfg):
            best = BestCheckpoint(self.checkpointer, best_metric(cfg), cfg.TEST.EVAL_PERIOD)
            position = next(i for i, hook in enumerate(result) if isinstance(hook, hooks.EvalHook))
            result.insert(position + 1, best)
        return result

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        return build_optimizer(cfg, model)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode):
        mapper = PartDatasetMapper(cfg, is_train=True, dataset_name=cfg.DATASETS.TRAIN[0])
        return build_detection_train_loader(cfg, mapper=mapper)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str, records: list[dict] | None = None):
        """Of `records` of the data set only, if given."""
        mapper = PartDatasetMapper(cfg, is_train=False, dataset_name=dataset_name)
        batch_size = cfg.DATALOADER.TEST_BATCH_SIZE
        if records is None:
            return build_detection_test_loader(cfg, dataset_name, mapper=mapper, batch_size=batch_size)
        workers = cfg.DATALOADER.NUM_WORKERS
        return build_detection_test_loader(records, mapper=mapper, batch_size=batch_size, num_workers=workers)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluators:
        return build_evaluator(cfg, dataset_name)

    @classmethod
    def test(cls, cfg: CfgNode, model: nn.Module, evaluators: list | None = None) -> OrderedDict:
        """Evaluation during training: DATASETS.VAL, clean and under ATTACK.EVAL_DURING_TRAINING.

        Returns:
            As detectron2's: `{task: metrics}` for one data set, `{data set: {task: metrics}}` for several.
        """
        share_buffers(model)
        names = cfg.ATTACK.EVAL_DURING_TRAINING if cfg.ATTACK.TRAIN.ENABLED else ()
        results, _ = cls.evaluate(cfg, model, watched_datasets(cfg), build_attacks(cfg, names), evaluators)
        return next(iter(results.values())) if len(results) == 1 else results

    @classmethod
    def evaluate(
        cls,
        cfg: CfgNode,
        model: nn.Module,
        dataset_names: tuple[str, ...],
        attacks: dict[str, Attack],
        evaluators: list | None = None,
    ) -> tuple[OrderedDict, dict[str, list[str]]]:
        """Clean and attacked results, and warnings, by data set."""
        results: OrderedDict = OrderedDict()
        warnings = {}
        for index, name in enumerate(dataset_names):
            evaluator = evaluators[index] if evaluators else cls.build_evaluator(cfg, name)
            loader = cls.build_test_loader(cfg, name)
            results[name], warnings[name] = evaluate_under_attacks(model, loader, evaluator, attacks)
            cut = [attack for attack, built in attacks.items() if not built.full_gradient]
            if cut and cuts_gradient(model):
                warnings[name].append(
                    f"{', '.join(cut)}: FULL_GRADIENT is False, the attack followed the cut gradient of the published "
                    "detector; robustness is overestimated"
                )
            for sentence in warnings[name]:
                logger.warning("%s: %s", name, sentence)
        return results, warnings


def unwrap(model: nn.Module) -> nn.Module:
    return model.module if isinstance(model, DistributedDataParallel) else model


def share_buffers(model: nn.Module) -> None:
    """Gives all processes the buffers of the main one, whose checkpoint is saved.

    detectron2 trains without broadcasting them, so ordinary batch norm keeps other statistics in every process, and
    each would evaluate its share of the images with another model than the saved one.
    """
    if comm.get_world_size() > 1:
        for buffer in unwrap(model).buffers():
            torch.distributed.broadcast(buffer, src=0)


def aimed(cfg: CfgNode, spec: CfgNode) -> Attack:
    """Builds an attack; for models that have no class logits, one on the loss of their parts."""
    node = cfg.MODEL.PART_CLASSIFIER
    changes = {"FULL_GRADIENT": spec.FULL_GRADIENT and cfg.ATTACK.FULL_GRADIENT}
    if not node.HEAD and get_objective(spec.OBJECTIVE).reads == "class_logits":
        changes["OBJECTIVE"] = PART_SEGMENTER_REGISTRY.get(node.SEGMENTER).attack_objective
        logger.info("The model has no class head: attack %s maximises %s", spec.NAME, changes["OBJECTIVE"])
    return build_attack(spec, **changes)


def build_attacks(cfg: CfgNode, names: Iterable[str]) -> dict[str, Attack]:
    """Attacks of ATTACK.SPECS by name."""
    return {name: aimed(cfg, attack_spec(cfg, name)) for name in names}


def watched_datasets(cfg: CfgNode) -> tuple[str, ...]:
    """What training evaluates on: DATASETS.VAL, and DATASETS.TEST only where there is no VAL."""
    return tuple(cfg.DATASETS.VAL or cfg.DATASETS.TEST)


def best_metric(cfg: CfgNode) -> str:
    """TEST.BEST_METRIC with "auto" resolved, as it is named in the event storage."""
    if cfg.TEST.BEST_METRIC != "auto":
        return cfg.TEST.BEST_METRIC
    task = "classification/accuracy" if cfg.MODEL.PART_CLASSIFIER.HEAD else "part_seg/pixel_accuracy"
    if cfg.ATTACK.TRAIN.ENABLED and cfg.ATTACK.EVAL_DURING_TRAINING:
        task = task.replace("/", f"_{cfg.ATTACK.EVAL_DURING_TRAINING[0]}/")
    watched = watched_datasets(cfg)
    return f"{watched[0]}/{task}" if len(watched) > 1 else task


@contextmanager
def _ddp_without_device_ids(device: str) -> Iterator[None]:
    """DistributedDataParallel refuses `device_ids` on CPU, which detectron2's `DefaultTrainer` always passes."""
    original = defaults.create_ddp_model
    if torch.device(device).type == "cpu":
        defaults.create_ddp_model = functools.partial(original, device_ids=None)
    try:
        yield
    finally:
        defaults.create_ddp_model = original
