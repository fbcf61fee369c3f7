"""Trains or evaluates a part model.

    part-robust train --config-file part_shapes/deeplab_two_headed.yaml
    part-robust train --config-file part_shapes/deeplab_two_headed_adv.yaml --two-phase
    part-robust evaluate --config-file ... MODEL.WEIGHTS output/model_best.pth
    part-robust evaluate --config-file ... MODEL.WEIGHTS output/model_best.pth TEST.TIER standard,parts

Flags are detectron2's, --two-phase: first the clean training that the adversarial one begins from, --audit: the
expensive checks of an evaluation, too, and --backend: whose implementation attacks the class in an evaluation. KEY
VALUE pairs that change the config come last. Also under torchrun and srun (docs/scaling.md).
"""

import argparse
import functools
from collections.abc import Callable, Sequence

from detectron2.engine import default_argument_parser

from part_robust.engine import end_process_group, evaluate, launch, train
from part_robust.engine.setup import setup_run
from part_robust.runs.two_phase import prepare_two_phases
from part_robust.utils.errors import as_user_errors


def main(arguments: Sequence[str] | None = None) -> None:
    parser = default_argument_parser()
    parser.add_argument(
        "--two-phase",
        action="store_true",
        help="train clean first (x.yaml beside x_adv.yaml), then adversarially from its best weights; the same command "
        "again continues where it was interrupted",
    )
    parser.add_argument(
        "--audit",
        action="store_true",
        help="with --eval-only: the expensive checks, too (docs/checks.md); the same as TEST.AUDIT True",
    )
    parser.add_argument(
        "--backend",
        help="with --eval-only: own, or autoattack (pip install part_robust[aa]), the official code "
        "for attacks on the class (docs/evaluation.md); the same as TEST.BACKEND",
    )
    launch(run, parser.parse_args(arguments))


def run(args: argparse.Namespace) -> None:
    """Trains or evaluates in one process of the job."""
    with as_user_errors():
        work = prepare_two_phases(args) if args.two_phase else prepare(args)
    work()
    end_process_group()


def prepare(args: argparse.Namespace) -> Callable[[], object]:
    if args.audit:
        if not args.eval_only:
            raise ValueError("--audit checks an evaluation: it goes with --eval-only")
        args.opts = [*args.opts, "TEST.AUDIT", "True"]
    if args.backend:
        if not args.eval_only:
            raise ValueError("--backend requires --eval-only")
        args.opts = [*args.opts, "TEST.BACKEND", args.backend]
    if not args.eval_only and "TEST.TIER" in args.opts[0::2]:
        raise ValueError("TEST.TIER says how to evaluate: it goes with --eval-only (or part-robust evaluate)")
    cfg, attacks = setup_run(args)
    if args.eval_only:
        return functools.partial(evaluate, cfg, args.resume, attacks)
    return functools.partial(train, cfg, resume=args.resume)
