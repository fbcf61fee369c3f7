"""DINO beside the authors' implementation."""

import argparse

import torch
from detectron2.modeling import build_model
from tabulate import tabulate

import part_robust.modeling  # noqa: F401  (registration)
from benchmarks.official_dino import load_official
from benchmarks.timing import CLOCKS, best_times
from part_robust.config import get_part_robust_cfg
from part_robust.modeling.gradients import full_gradient


def build_dino(layers: int, queries: int, parts: int, backend: str, device: str) -> torch.nn.Module:
    opts = [
        *("MODEL.DEVICE", device),
        *("MODEL.RESNETS.OUT_FEATURES", ["res3", "res4", "res5"]),
        *("MODEL.RESNETS.NORM", "FrozenBN"),
        *("MODEL.PART_CLASSIFIER.SEGMENTER", "DinoSegmenter"),
        *("MODEL.PART_CLASSIFIER.HEAD", ""),
        *("MODEL.PART_CLASSIFIER.NUM_PARTS", parts),
        *("MODEL.PART_CLASSIFIER.NUM_CLASSES", 11),
        *("MODEL.DINO.ENCODER_LAYERS", layers),
        *("MODEL.DINO.DECODER_LAYERS", layers),
        *("MODEL.DINO.NUM_QUERIES", queries),
        *("MODEL.DINO.MS_DEFORM_ATTN", backend),
    ]
    return build_model(get_part_robust_cfg(None, opts)).eval().requires_grad_(False)


def dino(args: argparse.Namespace) -> None:
    """Forward and backward to the input: a step of an attack."""
    device = torch.device(args.device)
    ours = build_dino(args.layers, args.queries, args.parts, args.backend, args.device)
    official = None
    if args.official:
        official, _ = load_official(
            args.official,
            num_classes=args.parts,
            enc_layers=args.layers,
            dec_layers=args.layers,
            num_queries=args.queries,
        )
        official = official.to(device).eval().requires_grad_(False)
        from util.misc import NestedTensor  # of the checkout

    rows = []
    for count in args.images:
        images = torch.randn(count, 3, args.size, args.size, device=device)
        mask = torch.zeros(count, args.size, args.size, dtype=torch.bool, device=device)

        def backward(logits: torch.Tensor, boxes: torch.Tensor, x: torch.Tensor) -> None:
            torch.autograd.grad(logits.square().mean() + boxes.square().mean(), x)

        def run_ours(images=images):
            x = images.clone().requires_grad_(True)
            output = ours.segmenter(ours.backbone(x), x.shape[-2:], class_only=True)
            backward(output.query_logits, output.query_boxes, x)

        def run_ours_whole():
            with full_gradient(ours):
                run_ours()

        def run_official(images=images, mask=mask):
            x = images.clone().requires_grad_(True)
            output = official(NestedTensor(x, mask))
            backward(output["pred_logits"], output["pred_boxes"], x)

        sides = {"ours": run_ours, "ours, whole gradient": run_ours_whole}
        if official is not None:
            sides["official"] = run_official
        times = best_times(sides, args.repeats, device, CLOCKS[args.clock])
        for name, value in times.items():
            rows.append([count, name, value, value / times["official"] if official is not None else None])
    print(
        f"DINO {args.layers}/{args.layers} layers, {args.queries} queries, {args.parts} parts, {args.size} px, "
        f"forward and backward to the input, {device}, {torch.get_num_threads()} threads, {args.clock} clock, "
        f"best of {args.repeats}"
    )
    print(tabulate(rows, ["images", "model", "ms", "ratio to official"], "github", (".0f", "", ".0f", ".2f")))
