"""The models of the battery: built with settings, checked against the CPU, trained and attacked on one batch."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from detectron2.data import MetadataCatalog
from detectron2.utils.events import EventStorage
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.mask_dino import make_batch
from part_robust.attacks import attack_batch, attack_mode, build_attack
from part_robust.config import attack_spec, get_part_robust_cfg
from part_robust.configured_attacks import training_attack
from part_robust.data.part_shapes import CLASSES, PARTS
from part_robust.engine import PartTrainer, optimizer
from part_robust.engine.adversarial_loader import AdversarialLoader
from part_robust.engine.step import build_step_trainer
from part_robust.utils.precision import exact_kernels, tf32

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
DATASET = "benchmark_gpu_part_shapes"
FAMILIES = {
    "ResNet-50": "resnet50",
    "Two-Headed": "deeplab_two_headed",
    "DINO sequential": "dino_sequential",
    "Mask DINO Simple": "mask_dino_simple",
}
PRECISION_OPTIONS = {
    "float32": [],
    "tf32": ["SOLVER.TF32", True, "ATTACK.TRAIN.PRECISION", "tf32"],
    "bfloat16": ["SOLVER.AMP.ENABLED", True, "ATTACK.TRAIN.PRECISION", "bfloat16"],
}
# What is random in a training step, which no two devices have in common.
REPEATABLE = [
    *("MODEL.SEM_SEG_HEAD.ASPP_DROPOUT", 0.0),
    *("MODEL.DINO.DENOISING_NUMBER", 0),
    *("MODEL.MASK_DINO.DENOISING_NUMBER", 0),
    *("MODEL.MASK_DINO.MASK_LOSS", "dense"),
]
# Largest error, relative to the largest value, of a device that computes right. In float32 an image may change the
# order of a detector's queries, so that only the losses are held to anything.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 0.05}


@dataclass(frozen=True)
class Size:
    """How large the battery is.

    Attributes:
        folder: of the models' configs.
        side: of the images, in pixels.
        images: in a batch.
        steps: of the training's attack.
        long_steps: of PGD in evaluation.
        screen_steps: of each attack of the tier screen.
        matrix: rows and columns of the matrices whose product is the ceiling.
        repeats: timed calls; 0: as many as time allows.
    """

    folder: str
    side: int
    images: int
    steps: int
    long_steps: int
    screen_steps: int
    matrix: int
    repeats: int = 0


class Case:
    """A model with random weights, its config, and a batch of random images with rectangles as parts."""

    def __init__(
        self,
        family: str,
        size: Size,
        device: torch.device,
        precision: str,
        options: Sequence = (),
        fused: bool = True,
    ) -> None:
        """Build the model and its optimizer on drawn images.

        Args:
            family: a key of FAMILIES.
            size: of images and batch.
            device: where the model is.
            precision: a key of PRECISION_OPTIONS.
            options: KEY VALUE pairs.
            fused: let the optimizer use torch's fused kernels where it would.
        """
        matrix = [[float(part in own.parts) for own in CLASSES.values()] for part in PARTS]
        MetadataCatalog.pop(DATASET, None)
        MetadataCatalog.get(DATASET).set(
            object_classes=list(CLASSES), thing_classes=list(PARTS), part_to_class=torch.tensor(matrix).numpy()
        )
        opts = [
            *("MODEL.DEVICE", str(device)),
            *("MODEL.WEIGHTS", ""),
            *("MODEL.PART_CLASSIFIER.NUM_CLASSES", len(CLASSES)),
            *("MODEL.PART_CLASSIFIER.NUM_PARTS", len(PARTS)),
            *("DATASETS.TRAIN", (DATASET,)),
            *("SOLVER.IMS_PER_BATCH", size.images),
            *("ATTACK.TRAIN.ENABLED", True),
            *("ATTACK.TRAIN.STEPS", size.steps),
            *("ATTACK.TRAIN.STEP_SIZE", 1.0),
        ]
        self.cfg = get_part_robust_cfg(
            CONFIGS / size.folder / f"{FAMILIES[family]}.yaml", [*opts, *PRECISION_OPTIONS[precision], *options]
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.model: nn.Module = PartTrainer.build_model(self.cfg).train()
        self.batch = make_batch(size.images, size.side, len(PARTS))[1]
        for index, item in enumerate(self.batch):
            item["class_id"] = index % len(CLASSES)
        self.fused = fused

    @contextmanager
    def training(self, attacked: bool) -> Iterator[Callable[[], None]]:
        """A call that makes one training step, as `PartTrainer` does, without reading images."""
        before, benchmark = optimizer.FUSED_ON, torch.backends.cudnn.benchmark
        optimizer.FUSED_ON = before if self.fused else ()
        torch.backends.cudnn.benchmark = self.cfg.CUDNN_BENCHMARK
        loader = itertools.repeat(self.batch)
        if attacked:
            node = self.cfg.ATTACK.TRAIN
            loader = AdversarialLoader(loader, self.model, training_attack(self.cfg), precision=node.PRECISION)
        trainer = build_step_trainer(self.cfg, self.model, loader, optimizer.build_optimizer(self.cfg, self.model))
        trainer.iter = 0

        def step() -> None:
            trainer.optimizer.zero_grad(set_to_none=True)
            with tf32(self.cfg.SOLVER.TF32):
                trainer.run_step()

        try:
            with EventStorage():
                yield step
        finally:
            optimizer.FUSED_ON = before
            torch.backends.cudnn.benchmark = benchmark

    @contextmanager
    def evaluation(self, names: Sequence[str], steps: int) -> Iterator[Callable[[], None]]:
        """A call that runs attacks of ATTACK.SPECS, once each, on the whole batch from its first to its last step."""
        changes = {"STEPS": steps, "RESTARTS": 1, "EARLY_STOP": False}
        attacks = [build_attack(attack_spec(self.cfg, name), **changes) for name in names]
        keys = torch.arange(len(self.batch))
        with exact_kernels(), attack_mode(self.model) as inner:

            def run() -> None:
                for attack in attacks:
                    attack_batch(attack, inner, self.batch, keys)

            yield run


def check(family: str, size: Size, device: torch.device) -> dict:
    """A training step, an attack and the evaluation of two batches on the device, against those on the CPU.

    Raises:
        ArithmeticError: they differ.
    """
    here, there = Case(family, size, torch.device("cpu"), "float32", REPEATABLE), None
    there = Case(family, size, device, "float32", REPEATABLE)
    there.model.load_state_dict(here.model.state_dict())
    notes = []
    with exact_kernels():
        for dtype, tolerance in TOLERANCE.items():
            ours, theirs = (_numbers(case, dtype) for case in (there, here))
            errors = {name: _error(ours[name], theirs[name]) for name in theirs}
            notes.append(f"{dtype}: " + ", ".join(f"{name} {error:.1e}" for name, error in errors.items()))
            held = errors if dtype == torch.float64 else {"losses": errors["losses"]}
            wrong = [name for name, error in held.items() if not error <= tolerance]
            if wrong:
                raise ArithmeticError(f"{', '.join(wrong)} differ from the CPU's: {'; '.join(notes)}")
    with there.training(attacked=True) as step:
        step()
    if not all(bool(p.isfinite().all()) for p in there.model.parameters()):
        raise ArithmeticError("weights are not finite after a training step")
    return {"note": "; ".join(notes)}


def _numbers(case: Case, dtype: torch.dtype) -> dict[str, Tensor]:
    """Losses of a batch, gradient of the class loss to the images, and class logits of two batches, on the CPU."""
    model = case.model.to(dtype)
    model.train()
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with torch.no_grad():
        losses = torch.stack([loss.double() for loss in model(case.batch).values()])
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])
    with attack_mode(model) as inner:
        images, padding = inner.preprocess(case.batch)
        images = images.to(dtype).requires_grad_(True)
        labels = torch.tensor([item["class_id"] for item in case.batch]).to(images.device)
        loss = F.cross_entropy(inner.class_logits(images, padding), labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, images)
    model.eval()
    batches = (case.batch, case.batch[::-1])
    with torch.no_grad():
        logits = torch.stack([output["class_logits"] for batch in batches for output in model(batch)])
    model.train()
    case.model.float()
    return {"losses": losses.cpu(), "gradient": gradient.cpu(), "logits": logits.cpu()}


def _error(found: Tensor, expected: Tensor) -> float:
    """Largest difference, relative to the largest value."""
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-12))
