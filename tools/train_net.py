#!/usr/bin/env python
"""Trains or evaluates a part model.

    python tools/train_net.py --config-file configs/part_shapes/deeplab_two_headed.yaml
    python tools/train_net.py --config-file ... --eval-only MODEL.WEIGHTS output/model_best.pth
    python tools/train_net.py --config-file ... --eval-only MODEL.WEIGHTS output/model_best.pth TEST.TIER standard,parts

Flags are detectron2's; KEY VALUE pairs that change the config come last.
"""

import argparse
import sys

from detectron2.engine import default_argument_parser, launch

from part_robust.engine import CheckpointMismatch, JournalMismatch, end_process_group, evaluate, setup, train


def main(args: argparse.Namespace):
    try:
        cfg = setup(args)
    except (FileNotFoundError, KeyError, ValueError) as error:
        # What a user can mend needs a sentence, not a traceback.
        sys.exit(sentence(error))
    results = evaluate(cfg, resume=args.resume) if args.eval_only else train(cfg, resume=args.resume)
    end_process_group()
    return results


def sentence(error: Exception) -> str:
    # str() of a KeyError is its message in quotes.
    return f"{type(error).__name__}: {error.args[0] if isinstance(error, KeyError) else error}"


if __name__ == "__main__":
    arguments = default_argument_parser().parse_args()
    try:
        launch(
            main,
            arguments.num_gpus,
            num_machines=arguments.num_machines,
            machine_rank=arguments.machine_rank,
            dist_url=arguments.dist_url,
            args=(arguments,),
        )
    except (FileNotFoundError, CheckpointMismatch, JournalMismatch) as error:
        sys.exit(sentence(error))
