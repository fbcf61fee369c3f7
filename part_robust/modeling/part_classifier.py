"""The meta-architecture: backbone, and a part segmenter or a class head or both.

Letters: N images, C classes, P parts, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone
from torch import Tensor, nn

from part_robust.losses.adversarial import TrainingObjective
from part_robust.modeling.compiled import CompiledPath
from part_robust.modeling.counts import with_counts
from part_robust.modeling.gradients import chooses_queries, eval_mode_no_grad, expanded_queries, full_gradient
from part_robust.modeling.part_loss_view import part_loss_view
from part_robust.modeling.preprocess import part_targets, preprocess, training_targets
from part_robust.modeling.registry import ClassHead, PartSegmenter, build_class_head, build_part_segmenter, check_fit
from part_robust.structures import Assignment, LabelCount, PartTargets
from part_robust.utils.devices import check_device
from part_robust.utils.errors import UserError


@META_ARCH_REGISTRY.register()
class PartClassifier(nn.Module):
    """Part-based image classifier.

    Training: `list[dict]` of the mapper -> dict of weighted losses, `(1 - c_seg) loss_cls + c_seg loss_parts`. A batch
    with `image_clean` beside the attacked `image` is compared as `objective` says (losses/adversarial.py).
    Evaluation: `list[dict]` -> `list[dict]` with `class_logits` (C,) if there is a head, and the segmenter's `sem_seg`
    (P + 1, H, W) and / or `instances` if there is one.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    @configurable
    def __init__(
        self,
        *,
        backbone: nn.Module,
        segmenter: PartSegmenter | None,
        head: ClassHead | None,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        seg_loss_weight: float = 0.5,
        label_smoothing: float = 0.0,
        full_gradient_attacks: bool = True,
        compile_attacks: bool = False,
        objective: TrainingObjective | None = None,
    ) -> None:
        """Put a model together from its pieces.

        Args:
            backbone: a detectron2 backbone.
            segmenter: part segmenter, or None for a plain classifier.
            head: class head, or None for segmentation only.
            pixel_mean: three values, RGB, 0..255.
            pixel_std: three values, RGB, 0..255.
            seg_loss_weight: c_seg, 0..1; unused where only one of the two losses exists.
            label_smoothing: of the class cross-entropy, 0..1.
            full_gradient_attacks: attacks see the gradient that the segmenter cuts in training.
            compile_attacks: attacks on the class go through torch.compile.
            objective: of batches that hold clean and attacked images; training on the attacked ones by default.

        Raises:
            ValueError: neither segmenter nor head; a head that needs parts without a segmenter; c_seg outside 0..1; an
                objective that compares class predictions without a head.
        """
        super().__init__()
        if segmenter is None and head is None:
            raise ValueError("a model needs MODEL.PART_CLASSIFIER.SEGMENTER, MODEL.PART_CLASSIFIER.HEAD, or both")
        if head is not None and head.needs_parts and segmenter is None:
            raise ValueError(f"{type(head).__name__} reads parts: set MODEL.PART_CLASSIFIER.SEGMENTER")
        if segmenter is not None and head is not None:
            check_fit(segmenter, head)
        if not 0.0 <= seg_loss_weight <= 1.0:
            raise ValueError(f"MODEL.PART_CLASSIFIER.SEG_LOSS_WEIGHT must lie in 0..1, is {seg_loss_weight}")
        self.backbone = backbone
        self.segmenter = segmenter
        self.head = head
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), persistent=False)
        both = segmenter is not None and head is not None
        self.class_loss_weight = 1.0 - seg_loss_weight if both else 1.0
        self.part_loss_weight = seg_loss_weight if both else 1.0
        self.label_smoothing = label_smoothing
        self.full_gradient_attacks = full_gradient_attacks
        self.compile_attacks = compile_attacks
        self._compiled: CompiledPath | None = None
        self.objective = objective or TrainingObjective()
        if head is None and self.objective.class_needs_clean:
            raise ValueError(
                f"ATTACK.TRAIN.METHOD {self.objective.method} compares class predictions, this model has no head: use "
                "METHOD adversarial, and PART_LOSS_ON both to learn parts from clean images too"
            )
        if segmenter is not None and self.objective.match_on == "clean" and not segmenter.uses_queries:
            raise ValueError(
                f"ATTACK.TRAIN.MATCH_ON clean: {type(segmenter).__name__} assigns no queries to parts, use attacked"
            )

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        check_device(cfg.MODEL.DEVICE)
        if cfg.INPUT.FORMAT != "RGB":
            raise ValueError(f"INPUT.FORMAT must be RGB, is {cfg.INPUT.FORMAT}")
        cfg = with_counts(cfg)
        backbone = build_backbone(cfg)
        return {
            "backbone": backbone,
            "segmenter": build_part_segmenter(cfg, backbone.output_shape()),
            "head": build_class_head(cfg, backbone.output_shape()),
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "seg_loss_weight": cfg.MODEL.PART_CLASSIFIER.SEG_LOSS_WEIGHT,
            "label_smoothing": cfg.MODEL.PART_CLASSIFIER.LABEL_SMOOTHING,
            "full_gradient_attacks": cfg.ATTACK.FULL_GRADIENT,
            "compile_attacks": cfg.ATTACK.COMPILE,
            "objective": training_objective(cfg),
        }

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return self.pixel_mean.device

    def class_logits(self, images: Tensor, padding: Tensor | None = None) -> Tensor:
        """Return class logits, differentiable with respect to `images`; attacks take their loss from these.

        Args:
            images: float (N, 3, H, W), RGB, 0..255.
            padding: bool (N, H, W), True on letterbox padding.

        Returns:
            (N, C) logits.

        Raises:
            ValueError: the model has no class head.
        """
        if self.head is None:
            raise ValueError("this model has no class head (MODEL.PART_CLASSIFIER.HEAD is empty)")
        features = self.features(images)
        parts = None
        if self.head.needs_parts:
            assert self.segmenter is not None
            parts = self.segmenter(features, images.shape[-2:], padding, class_only=True)
        return self.head(features, parts)

    def attack_class_logits(self) -> Callable[..., Tensor]:
        """`class_logits` as attacks call it: compiled, if the model was built so."""
        if not self.compile_attacks:
            return self.class_logits
        if self._compiled is None:
            self._compiled = CompiledPath(self.class_logits)
        return self._compiled

    def part_logits(self, images: Tensor, padding: Tensor | None = None) -> Tensor:
        """Return dense part scores (N, P + 1, H, W), background last, differentiable with respect to `images`.

        Args:
            images: float (N, 3, H, W), RGB, 0..255.
            padding: bool (N, H, W), True on letterbox padding.

        Raises:
            ValueError: the model has no part segmenter, or one that predicts no dense parts.
        """
        if self.segmenter is None:
            raise ValueError("this model has no part segmenter (MODEL.PART_CLASSIFIER.SEGMENTER is empty)")
        height, width = images.shape[-2:]
        output = self.segmenter(self.features(images), (height, width), padding)
        return self.segmenter.dense_logits(output, (height, width))

    def attack_gradient(self) -> AbstractContextManager[None]:
        """The context in which attacks take their gradients."""
        return full_gradient(self) if self.full_gradient_attacks else nullcontext()

    def expanded_queries(self, factor: int) -> AbstractContextManager[None] | None:
        """Return the context in which `class_logits` reads `factor` times the queries.

        It is None where the class is read from no queries that are chosen among others.
        """
        if self.head is None or not self.head.needs_parts or not chooses_queries(self):
            return None
        return expanded_queries(self, factor)

    def part_loss_view(
        self,
        batched_inputs: list[dict],
        images: Tensor,
        padding: Tensor | None,
        joint: bool,
        fixed: bool,
        term: str = "",
    ) -> Callable[[Tensor], tuple[Tensor | None, Tensor]]:
        """Return the function of images that an attack on the model's own part loss maximises.

        Args:
            batched_inputs: with the true parts.
            images: (N, 3, H, W) before the attack.
            padding: bool (N, H, W), True on letterbox padding.
            joint: class and part loss, weighted as in training, instead of the part loss.
            fixed: keep the matching of queries and true parts that `images` have.
            term: "class" or "box" for this term of the part loss alone, where the segmenter has it; "" for all of it.

        Returns:
            Images -> class logits (N, C), None unless `joint`, and the loss (N,), each image for itself.

        Raises:
            UserError: the model has no such loss.
        """
        if self.segmenter is None:
            raise UserError("attack objectives part_loss and joint need a model that learns parts: use cross_entropy")
        if joint and self.head is None:
            raise UserError("attack objective joint needs a class head: use part_loss")
        return part_loss_view(
            self.features,
            self.segmenter,
            self.head if joint else None,
            training_targets(batched_inputs, self.device, self.segmenter.target_fields, classes=joint),
            images,
            padding,
            class_weight=self.class_loss_weight,
            part_weight=self.part_loss_weight,
            fixed=fixed,
            term=term,
        )

    def part_score_margins(self, images: Tensor, padding: Tensor | None = None) -> Tensor:
        """Return (N, Q), by how much each query's surest part exceeds the score at which it counts as found.

        Args:
            images: float (N, 3, H, W), RGB, 0..255.
            padding: bool (N, H, W), True on letterbox padding.

        Raises:
            UserError: the model predicts no parts, or not by queries.
        """
        if self.segmenter is None:
            raise UserError("attack objective hide_parts needs a model that learns parts: use cross_entropy")
        # Scores need no masks.
        output = self.segmenter(self.features(images), images.shape[-2:], padding, class_only=True)
        return self.segmenter.score_margins(output)

    def preprocess(self, batched_inputs: list[dict]) -> tuple[Tensor, Tensor | None]:
        """Images float (N, 3, H, W) in 0..255 and the padding mask, on the model's device."""
        return preprocess(batched_inputs, self.device)

    def normalize(self, images: Tensor) -> Tensor:
        """Return images (N, 3, H, W) of 0..255 with the mean and the deviation of the backbone's training taken out."""
        return (images - self.pixel_mean) / self.pixel_std

    def features(self, images: Tensor) -> dict[str, Tensor]:
        """Backbone features of images (N, 3, H, W), 0..255 RGB."""
        return self.backbone(self.normalize(images))

    def forward(self, batched_inputs: list[dict]) -> dict[str, Tensor] | list[dict]:
        images, padding = self.preprocess(batched_inputs)
        if self.training:
            return self.losses(images, padding, batched_inputs)
        return self.inference(images, padding)

    def losses(self, images: Tensor, padding: Tensor | None, batched_inputs: list[dict]) -> dict[str, Tensor]:
        """Weighted losses of one batch: `loss_cls` and what the objective adds, and the segmenter's own names."""
        learned = training_targets(batched_inputs, self.device, self._target_fields, self.head is not None)
        targets, clean = learned.parts, learned.clean
        clean_weight, adversarial_weight = self.objective.part_weights()
        if clean is None:  # the batch has no clean copy
            adversarial_weight = 1.0
        part_losses: dict[str, Tensor] = {}
        clean_logits, assignment = None, None

        def forward_losses(
            images: Tensor,
            part_weight: float,
            compute_class: bool,
            denoise: bool = True,
            given: Assignment | None = None,
        ) -> tuple[Tensor | None, Assignment | None]:
            logits, losses, found = self._training_pass(
                images, padding, targets, part_weight > 0, compute_class, denoise, given
            )
            for name, loss in losses.items():
                part_losses[name] = part_losses.get(name, 0.0) + self.part_loss_weight * part_weight * loss
            return logits, found

        # Clean before attacked, so that batch norm ends with the statistics of the attacked ones.
        if clean is not None and (clean_weight > 0 or self.objective.class_needs_clean):
            clean_logits, assignment = forward_losses(clean, clean_weight, self.objective.class_needs_clean)
        if clean is None or self.objective.match_on == "attacked" or targets is None or adversarial_weight == 0:
            assignment = None
        elif assignment is None:
            assignment = self._assignment(clean, padding, targets)
        logits, _ = forward_losses(images, adversarial_weight, True, self.objective.denoise_attacked, assignment)
        if logits is None:
            return part_losses
        objective = self.objective if clean is not None else TrainingObjective()
        labels = learned.class_targets(logits.shape[1])
        class_losses = objective.class_losses(logits, clean_logits, labels, self.label_smoothing)
        return part_losses | {name: self.class_loss_weight * loss for name, loss in class_losses.items()}

    def part_label_counts(self, batched_inputs: list[dict]) -> dict[str, LabelCount]:
        """Return the denominators of the part losses in a batch, for a caller that splits it; see `PartSegmenter`."""
        if self.segmenter is None:
            return {}
        # Counted on the host, where the labels are: the caller that splits the batch copies the few numbers.
        return self.segmenter.label_counts(
            part_targets(batched_inputs, torch.device("cpu"), self.segmenter.target_fields)
        )

    @property
    def _target_fields(self) -> tuple[str, ...] | None:
        return None if self.segmenter is None else self.segmenter.target_fields

    def _training_pass(
        self,
        images: Tensor,
        padding: Tensor | None,
        targets: PartTargets | None,
        compute_parts: bool,
        compute_class: bool,
        denoise: bool = True,
        given: Assignment | None = None,
    ) -> tuple[Tensor | None, dict[str, Tensor], Assignment | None]:
        """Compute class logits (N, C), part losses, and the assignment of queries to true parts, as far as they exist.

        Computes only what is requested. `given` is an assignment to keep, see `PartSegmenter.assign`.
        """
        features = self.features(images)
        segmenter, head = self.segmenter, self.head if compute_class else None
        parts, losses = None, {}
        if segmenter is not None and targets is not None and compute_parts:
            options = {} if denoise or not segmenter.uses_queries else {"denoise": False}
            parts = segmenter(features, images.shape[-2:], padding, targets, **options)
            if given is not None:
                segmenter.assign(parts, given)
            losses = segmenter.losses(parts, targets)
        elif segmenter is not None and head is not None and head.needs_parts:
            parts = segmenter(features, images.shape[-2:], padding, class_only=True)
        logits = None if head is None else head(features, parts).float()
        return logits, losses, None if parts is None else parts.assignment

    def _assignment(self, images: Tensor, padding: Tensor | None, targets: PartTargets) -> Assignment | None:
        assert self.segmenter is not None
        with eval_mode_no_grad(self):
            features = self.features(images)
            return self.segmenter.assign(self.segmenter(features, images.shape[-2:], padding, targets))

    def inference(self, images: Tensor, padding: Tensor | None) -> list[dict]:
        """Return one dict per image: `class_logits` (C,), `sem_seg` (P + 1, H, W) and `instances`, as far as predicted.

        Args:
            images: float (N, 3, H, W), RGB, 0..255.
            padding: bool (N, H, W), True on letterbox padding; None where there is none.
        """
        features = self.features(images)
        height, width = images.shape[-2:]
        parts = None
        results: list[dict] = [{} for _ in images]
        if self.segmenter is not None:
            parts = self.segmenter(features, (height, width), padding)
            results = self.segmenter.inference(parts, (height, width))
        if self.head is not None:
            for result, logits in zip(results, self.head(features, parts), strict=True):
                result["class_logits"] = logits
        return results


def training_objective(cfg: CfgNode) -> TrainingObjective:
    """Return the objective that ATTACK.TRAIN describes; the plain one where nothing is attacked."""
    node = cfg.ATTACK.TRAIN
    if not node.ENABLED:
        return TrainingObjective()
    return TrainingObjective(
        method=node.METHOD,
        adversarial_weight=node.MIX_WEIGHT,
        trades_beta=node.TRADES_BETA,
        mart_beta=node.MART_BETA,
        part_loss_on=node.PART_LOSS_ON,
        denoise_attacked=node.DENOISING,
        match_on=node.MATCH_ON,
    )
