"""The trainer: detectron2's `DefaultTrainer` with part data, attacked batches and attacked evaluation."""

from __future__ import annotations

import functools
import logging
import weakref
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, HookBase, SimpleTrainer, defaults, hooks
from detectron2.evaluation import DatasetEvaluators, verify_results
from detectron2.utils import comm
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from part_robust.configured_attacks import build_attacks, training_attack
from part_robust.data import PartDatasetMapper
from part_robust.data.colour_jitter import JitteredLoader
from part_robust.data.test_loader import build_test_loader
from part_robust.engine.adversarial_loader import AdversarialLoader
from part_robust.engine.batch_norm import RunningStatistics, StatisticsCheck, check_batch_norm
from part_robust.engine.best_metric import best_metric, validation_datasets
from part_robust.engine.checkpoint import PartCheckpointer
from part_robust.engine.data_stream import build_stream_loader, set_start_iteration
from part_robust.engine.early_stopping import EarlyStopping, StoppedEarly
from part_robust.engine.failures import FiniteSteps, SaveOnSignal
from part_robust.engine.hooks import (
    AttackSchedule,
    BestCheckpoint,
    FrozenBackbone,
    MissedEvaluation,
    SeededIterations,
)
from part_robust.engine.optimizer import build_optimizer
from part_robust.engine.overfitting_guard import OverfittingGuard
from part_robust.engine.step import build_step_trainer
from part_robust.engine.weight_average import AverageWeights, WeightAverage
from part_robust.engine.weight_perturbation import RestoreWeights
from part_robust.evaluation import build_evaluator
from part_robust.evaluation.run import evaluate_in_training
from part_robust.modeling.activation_checkpointing import checkpoint_activations
from part_robust.modeling.part_classifier import PartClassifier, training_objective
from part_robust.utils.precision import exact_kernels, tf32

logger = logging.getLogger(__name__)


class PartTrainer(DefaultTrainer):
    """Trains on DATASETS.TRAIN, on attacked batches if ATTACK.TRAIN.ENABLED, and watches DATASETS.VAL."""

    _trainer: SimpleTrainer  # its model is a `TrainingStep` from `build_hooks` on
    data_loader: DataLoader | JitteredLoader | AdversarialLoader

    def __init__(self, cfg: CfgNode) -> None:
        with _ddp_as_needed(cfg):
            super().__init__(cfg)
        check_batch_norm(cfg, unwrap(self.model))

    @property
    def model(self) -> PartClassifier | DistributedDataParallel:
        """The model, inside DistributedDataParallel where there are several processes."""
        return self._trainer.model.model

    def build_hooks(self) -> list[HookBase]:
        cfg = self.cfg
        # The parent builds its own trainer and checkpointer just before it calls build_hooks, with no seam to choose
        # them.
        model = self._trainer.model
        self._trainer = build_step_trainer(cfg, model, self._trainer.data_loader, self._trainer.optimizer)
        self.finite_steps = FiniteSteps(self._trainer, cfg.SOLVER.NON_FINITE, cfg.SOLVER.NON_FINITE_LIMIT)
        self._trainer.register_hooks([self.finite_steps])
        perturbation = self._trainer.model.perturbation
        if perturbation is not None:
            self._trainer.register_hooks([RestoreWeights(perturbation)])
        self.average = WeightAverage(unwrap(model), cfg.SOLVER.EMA.DECAY) if cfg.SOLVER.EMA.DECAY > 0 else None
        kept: dict = {"trainer": weakref.proxy(self)} | ({"average": self.average} if self.average else {})
        self.checkpointer = PartCheckpointer(model, cfg.OUTPUT_DIR, **kept)
        result = super().build_hooks()
        position = next(i for i, hook in enumerate(result) if isinstance(hook, hooks.EvalHook))
        evaluation = hooks.EvalHook(cfg.TEST.EVAL_PERIOD, self._evaluate)
        result[position] = evaluation
        if validation_datasets(cfg):
            best = None
            if comm.is_main_process():
                best = BestCheckpoint(self.checkpointer, best_metric(cfg), cfg.TEST.EVAL_PERIOD, self.evaluated_weights)
                result.insert(position + 1, best)
            result.append(MissedEvaluation(cfg.TEST.EVAL_PERIOD, evaluation._do_eval, best, cfg.OUTPUT_DIR))
            if cfg.SOLVER.PATIENCE > 0:
                result.append(EarlyStopping(cfg.SOLVER.PATIENCE, cfg.TEST.EVAL_PERIOD, best, self.checkpointer))
        if cfg.ATTACK.TRAIN.ENABLED:
            result = [*self._attack_batches(), *result]
        if cfg.SOLVER.BATCH_NORM == "running":
            result.insert(0, RunningStatistics(unwrap(model)))
        if cfg.SOLVER.BACKBONE_FREEZE_ITERS > 0:
            result.insert(0, FrozenBackbone(unwrap(model).backbone, cfg.SOLVER.BACKBONE_FREEZE_ITERS))
        if self.average:
            result.insert(0, AverageWeights(self.average))  # before the checkpoint is written
        if cfg.SEED >= 0:
            result.insert(0, SeededIterations(cfg.SEED))
        return [*result, SaveOnSignal(self.checkpointer)]

    def _attack_batches(self) -> list[HookBase]:
        """Wraps the loader, and gives the hooks that go with it."""
        cfg, model = self.cfg, unwrap(self.model)
        node = cfg.ATTACK.TRAIN
        attack = training_attack(cfg)
        loader = AdversarialLoader(
            self.data_loader,
            model,
            attack,
            node.FRACTION,
            keep_clean=training_objective(cfg).needs_clean(model.segmenter is not None, model.head is not None),
            pieces=cfg.SOLVER.ACCUMULATE,
            precision=node.PRECISION,
            skip_failures=cfg.SOLVER.NON_FINITE == "skip",
            seed=max(cfg.SEED, 0),
            on_batch=None if model.head is None else StatisticsCheck(model, cfg.SOLVER.ACCUMULATE),
        )
        self.data_loader = loader
        result: list[HookBase] = [AttackSchedule(loader, node.EPS_WARMUP_ITERS)]
        if node.GUARD.PERIOD > 0 and model.head is None:
            logger.warning("ATTACK.TRAIN.GUARD watches class accuracy: there is none without a class head")
        elif node.GUARD.PERIOD > 0:
            if not cfg.DATASETS.VAL:
                logger.warning(
                    "DATASETS.VAL is empty: ATTACK.TRAIN.GUARD watches images of DATASETS.TRAIN %s, which the training "
                    "sees; name held-out images in DATASETS.VAL",
                    cfg.DATASETS.TRAIN[0],
                )
            images = self.held_out_images(cfg, node.GUARD.IMAGES)
            result.append(
                OverfittingGuard(
                    model,
                    attack,
                    images,
                    period=node.GUARD.PERIOD,
                    steps=node.GUARD.STEPS,
                    drop=node.GUARD.DROP,
                    action=node.GUARD.ACTION,
                )
            )
        return result

    @classmethod
    def held_out_images(cls, cfg: CfgNode, count: int) -> list[list[dict]]:
        """Return this process's share of the first `count` images of DATASETS.VAL, in batches.

        Without VAL they are of the training set. The loader gives each process a run of neighbours, so all data is gone
        through up to `count`.
        """
        names = cfg.DATASETS.VAL or cfg.DATASETS.TRAIN
        share = -(-count // comm.get_world_size())
        batches, found = [], 0
        for batch in cls.build_test_loader(cfg, names[0]):
            batches.append(batch[: share - found])
            found += len(batches[-1])
            if found >= share:
                break
        return batches

    def evaluated_weights(self) -> AbstractContextManager:
        """Context in which the model has the weights that are evaluated and kept as the best: their average, if any."""
        return self.average.applied() if self.average else nullcontext()

    def _evaluate(self) -> OrderedDict:
        with self.evaluated_weights():
            self._last_eval_results = self.test(self.cfg, self.model)
        return self._last_eval_results

    def resume_or_load(self, resume: bool = True) -> None:
        super().resume_or_load(resume)
        loader = self.data_loader
        set_start_iteration(
            loader.loader if isinstance(loader, AdversarialLoader) else loader, self.start_iter, self.cfg
        )

    def train(self) -> OrderedDict | None:
        """Train, and end the data-loading workers, however the training ends.

        A loader's iterator that is collected as garbage together with its queues cannot tell the workers to end: it
        waits 5 s for each before it kills them.
        """
        try:
            return super().train()
        except StoppedEarly:
            results = getattr(self, "_last_eval_results", None)
            if results and self.cfg.TEST.EXPECTED_RESULTS:
                verify_results(self.cfg, results)
            return results
        finally:
            self._trainer._data_loader_iter_obj = None

    def run_step(self) -> None:
        perturbation = self._trainer.model.perturbation
        if perturbation is not None:
            perturbation.at(self.iter)
        self.finite_steps.keep_buffers()
        # The attack, which comes first, needs no gradients of the weights: their memory is free for it.
        self._trainer.optimizer.zero_grad(set_to_none=True)
        try:
            with tf32(self.cfg.SOLVER.TF32):
                super().run_step()
        finally:
            if perturbation is not None:
                perturbation.restore()  # after an error; `RestoreWeights` did it otherwise

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        model = super().build_model(cfg)
        checkpoint_activations(model, cfg.MODEL.ACTIVATION_CHECKPOINTING)
        return model.to(memory_format=torch.channels_last) if cfg.SOLVER.CHANNELS_LAST else model

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        return build_optimizer(cfg, model)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> DataLoader | JitteredLoader:
        mapper = PartDatasetMapper(cfg, is_train=True, dataset_name=cfg.DATASETS.TRAIN[0])
        loader = build_stream_loader(cfg, mapper)
        return JitteredLoader(loader, cfg.MODEL.DEVICE) if any(cfg.INPUT.COLOR_JITTER) else loader

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str, records: list[dict] | None = None) -> DataLoader:
        """Same as `part_robust.data.test_loader.build_test_loader`."""
        return build_test_loader(cfg, dataset_name, records)

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
        attacks = build_attacks(cfg, cfg.ATTACK.EVAL_DURING_TRAINING if cfg.ATTACK.TRAIN.ENABLED else ())
        results: OrderedDict = OrderedDict()
        for index, name in enumerate(validation_datasets(cfg)):
            evaluator = evaluators[index] if evaluators else cls.build_evaluator(cfg, name)
            loader = cls.build_test_loader(cfg, name)
            with exact_kernels():
                results[name], _ = evaluate_in_training(model, name, attacks, loader, evaluator)
        return next(iter(results.values())) if len(results) == 1 else results


def unwrap(model: PartClassifier | DistributedDataParallel) -> PartClassifier:
    """Return the model without DistributedDataParallel."""
    return model.module if isinstance(model, DistributedDataParallel) else model


def share_buffers(model: nn.Module) -> None:
    """Gives all processes the buffers of the main one, whose checkpoint is saved.

    detectron2 trains without broadcasting them, so ordinary batch norm keeps other statistics in every process, and
    each would evaluate its share of the images with another model than the saved one.
    """
    _share(model.buffers())


def share_weights(model: nn.Module) -> None:
    """Gives all processes the weights of the main one; random weights are others in every process."""
    _share(model.state_dict().values())


def _share(tensors: Iterable[Tensor]) -> None:
    if comm.get_world_size() > 1:
        for tensor in tensors:
            torch.distributed.broadcast(tensor, src=0)


@contextmanager
def _ddp_as_needed(cfg: CfgNode) -> Iterator[None]:
    """Let detectron2's `DefaultTrainer` build DistributedDataParallel as this job needs it.

    It takes the local rank for the device's index, which DistributedDataParallel refuses on a CPU, and which is wrong
    where a process sees its own GPU alone. DistributedDataParallel waits for the gradients of a frozen backbone unless
    it detects the unused ones.
    """
    original = defaults.create_ddp_model
    on_gpu = torch.device(cfg.MODEL.DEVICE).type == "cuda"
    options: dict = {"device_ids": [torch.cuda.current_device()] if on_gpu else None}
    if cfg.SOLVER.BACKBONE_FREEZE_ITERS > 0:
        options["find_unused_parameters"] = True
    defaults.create_ddp_model = functools.partial(original, **options)
    try:
        yield
    finally:
        defaults.create_ddp_model = original
