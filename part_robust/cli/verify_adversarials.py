"""Scores saved adversarial images in a fresh process and says whether the evaluation's verdicts hold.

    part-robust verify-adversarials output/part_shapes/deeplab_two_headed_adv

The folder is OUTPUT_DIR of an evaluation with TEST.TIER and TEST.SAVE_ADVERSARIALS. Each image must lie in the threat
model and get the verdict that was saved beside it; robustness.json notes the outcome, and the report is written anew:
with a mismatch its numbers are not reportable (check C5).
Exit codes: 0 all do, 1 some do not, 2 there is nothing to verify.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from part_robust.engine import PartCheckpointer, PartTrainer
from part_robust.evaluation.report import write_report
from part_robust.evaluation.verification import note_in_record, recorded_config, verify
from part_robust.utils.devices import check_device
from part_robust.utils.errors import PREPARATION, user_errors

SHOWN = 20


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--weights", default="", help="where the checkpoint is now, if it moved")
    parser.add_argument("--device", default="", help="cpu or cuda; default: the evaluation's")
    args = parser.parse_args(arguments)
    # 1 means that images are not as the record says.
    with user_errors(*PREPARATION, code=2):
        cfg, record = recorded_config(args.folder, args.weights)
        if args.device:
            check_device(args.device, "--device")
            cfg.MODEL.DEVICE = args.device
        model = PartTrainer.build_model(cfg)
        PartCheckpointer(model, strict=True).load(cfg.MODEL.WEIGHTS)
        results = verify(args.folder, cfg, model, record)
        note_in_record(args.folder, results)
        write_report(args.folder / "robustness.json")
    for result in results:
        accuracy = "" if result.accuracy is None else f", {result.accuracy:.2f} % right"
        print(f"{result.dataset} {result.tier}: {len(result.right)} images{accuracy}, {len(result.problems)} problems")
        for problem in result.problems[:SHOWN]:
            print(f"  {problem}", file=sys.stderr)
        if len(result.problems) > SHOWN:
            print(f"  and {len(result.problems) - SHOWN} more", file=sys.stderr)
    return int(any(result.problems for result in results))
