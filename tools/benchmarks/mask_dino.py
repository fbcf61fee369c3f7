"""Mask DINO beside the authors' implementation: inference, steps of attacks, a training step."""

import argparse
from collections.abc import Callable

import torch
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances
from tabulate import tabulate

import part_robust.modeling  # noqa: F401  (registration)
from benchmarks.official_mask_dino import load_official
from benchmarks.timing import CLOCKS, best_times
from part_robust.config import get_part_robust_cfg
from part_robust.modeling.gradients import full_gradient

PARTS_PER_IMAGE = 3


def build_mask_dino(args: argparse.Namespace) -> torch.nn.Module:
    opts = [
        *("MODEL.DEVICE", args.device),
        *("MODEL.RESNETS.OUT_FEATURES", ["res2", "res3", "res4", "res5"]),
        *("MODEL.RESNETS.NORM", "FrozenBN"),
        *("MODEL.BACKBONE.FREEZE_AT", 0),
        *("MODEL.PART_CLASSIFIER.SEGMENTER", "MaskDinoSegmenter"),
        *("MODEL.PART_CLASSIFIER.HEAD", ""),
        *("MODEL.PART_CLASSIFIER.NUM_PARTS", args.parts),
        *("MODEL.PART_CLASSIFIER.NUM_CLASSES", 11),
        *("MODEL.MASK_DINO.ENCODER_LAYERS", args.encoder_layers),
        *("MODEL.MASK_DINO.DECODER_LAYERS", args.layers),
        *("MODEL.MASK_DINO.NUM_QUERIES", args.queries),
        *("MODEL.MASK_DINO.OUTPUTS", ["semantic"]),
        *("MODEL.MASK_DINO.MASK_LOSS", args.mask_loss),
    ]
    return build_model(get_part_robust_cfg(None, opts))


def make_batch(count: int, size: int, parts: int) -> tuple[torch.Tensor, list[dict]]:
    """Images (N, 3, H, W), 0..255, and the mapper's dicts with rectangles as parts."""
    generator = torch.Generator().manual_seed(0)
    images = 255 * torch.rand(count, 3, size, size, generator=generator)
    batch = []
    for image in images:
        masks = torch.zeros(PARTS_PER_IMAGE, size, size, dtype=torch.bool)
        for number, mask in enumerate(masks):
            mask[size // 8 : size // 2, number * size // 4 : (number + 1) * size // 4] = True
        instances = Instances((size, size))
        instances.gt_masks = BitMasks(masks)
        instances.gt_boxes = Boxes(instances.gt_masks.get_bounding_boxes().tensor)
        instances.gt_classes = torch.randint(parts, (PARTS_PER_IMAGE,), generator=generator)
        sem_seg = torch.full((size, size), parts)
        batch.append(
            {"image": image, "instances": instances, "sem_seg": sem_seg, "class_id": 0, "part_supervision": "full"}
        )
    return images, batch


def mask_dino(args: argparse.Namespace) -> None:
    """Inference; forward and backward to the input, for classes and for label maps; a whole training step."""
    device = torch.device(args.device)
    ours, official = build_mask_dino(args), None
    if args.official:
        opts = [
            *("MODEL.SEM_SEG_HEAD.NUM_CLASSES", args.parts),
            *("MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS", args.encoder_layers),
            *("MODEL.MaskDINO.DEC_LAYERS", args.layers),
            *("MODEL.MaskDINO.NUM_OBJECT_QUERIES", args.queries),
        ]
        official = load_official(args.official, opts=tuple(opts)).to(device)
    rows = []
    for count in args.images:
        images, batch = make_batch(count, args.size, args.parts)
        images = images.to(device)
        for job, sides in _jobs(ours, official, images, batch).items():
            times = best_times(sides, args.repeats, device, CLOCKS[args.clock])
            for name, value in times.items():
                rows.append([count, job, name, value, value / times["official"] if official is not None else None])
    print(
        f"Mask DINO, {args.encoder_layers} encoder and {args.layers} decoder layers, {args.queries} queries, "
        f"{args.parts} parts, {args.size} px, {PARTS_PER_IMAGE} parts per image, mask loss {args.mask_loss}, {device}, "
        f"{torch.get_num_threads()} threads, {args.clock} clock, best of {args.repeats}"
    )
    headers = ["images", "what", "model", "ms", "ratio to official"]
    print(tabulate(rows, headers, "github", (".0f", "", "", ".0f", ".2f")))


def _jobs(
    ours: torch.nn.Module, official: torch.nn.Module | None, images: torch.Tensor, batch: list[dict]
) -> dict[str, dict[str, Callable[[], object]]]:
    """What is timed -> the sides."""

    def evaluating(model: torch.nn.Module, run: Callable[[], object]) -> Callable[[], object]:
        def call() -> object:
            model.eval().requires_grad_(False)
            return run()

        return call

    def to_the_input(outputs: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        x = images.clone().requires_grad_(True)
        return torch.autograd.grad(outputs(x).square().mean(), x)[0]

    def our_classes(x: torch.Tensor) -> torch.Tensor:
        return ours.segmenter(ours.backbone(ours.normalize(x)), x.shape[-2:], class_only=True).query_logits

    def whole(run: Callable[[], object]) -> object:
        with full_gradient(ours):
            return run()

    def without_gradient(run: Callable[[], object]) -> object:
        with torch.no_grad():
            return run()

    def train(model: torch.nn.Module, losses: Callable[[], dict]) -> Callable[[], object]:
        def call() -> None:
            model.train().requires_grad_(True)
            sum(losses().values()).backward()
            model.zero_grad(set_to_none=True)

        return call

    jobs: dict[str, dict[str, Callable[[], object]]] = {
        "inference": {"ours": evaluating(ours, lambda: without_gradient(lambda: ours.inference(images, None)))},
        "to the input, classes": {
            "ours": evaluating(ours, lambda: to_the_input(our_classes)),
            "ours, whole gradient": evaluating(ours, lambda: whole(lambda: to_the_input(our_classes))),
        },
        "to the input, label maps": {
            "ours": evaluating(ours, lambda: to_the_input(ours.part_logits)),
            "ours, whole gradient": evaluating(ours, lambda: whole(lambda: to_the_input(ours.part_logits))),
        },
        "training step": {"ours": train(ours, lambda: ours.losses(images, None, batch))},
    }
    if official is None:
        return jobs
    # Its own target format: plain tensors as masks.
    theirs = []
    for item in batch:
        instances = Instances(item["instances"].image_size)
        instances.gt_masks = item["instances"].gt_masks.tensor
        instances.gt_classes = item["instances"].gt_classes
        instances.gt_boxes = item["instances"].gt_boxes
        theirs.append({"image": item["image"], "instances": instances})

    def official_classes(x: torch.Tensor) -> torch.Tensor:
        features = official.backbone((x - official.pixel_mean) / official.pixel_std)
        return official.sem_seg_head(features)[0]["pred_logits"]

    def official_maps(x: torch.Tensor) -> torch.Tensor:
        return torch.stack([result["sem_seg"] for result in official([{"image": image} for image in x])])

    jobs["inference"]["official"] = evaluating(official, lambda: without_gradient(lambda: official_maps(images)))
    jobs["to the input, classes"]["official"] = evaluating(official, lambda: to_the_input(official_classes))
    jobs["to the input, label maps"]["official"] = evaluating(official, lambda: to_the_input(official_maps))
    jobs["training step"]["official"] = train(official, lambda: official(theirs))
    return jobs
