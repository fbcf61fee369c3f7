"""`make demo`: the main job on the built-in data, in about ten minutes on two cores.

Draws PartShapes, trains a plain ResNet and a Two-Headed part model, first clean and then against a PGD attacker,
evaluates all four on clean and attacked test images, and writes a table, a report for each, and a picture.
Interrupted, it goes on where it was; finished, it only prints the table again.
"""

import argparse
import os
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from tabulate import tabulate

from part_robust import load_config
from part_robust.data.part_shapes import make_part_shapes
from part_robust.engine.experiment import Phase, headline, run_phase
from part_robust.utils.errors import PREPARATION, user_errors

MODELS = {"resnet50": "ResNet, no parts", "deeplab_two_headed": "DeepLabv3+ Two-Headed"}
TRAININGS = {"": "clean", "_adv": "adversarial"}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs for every run")
    opts = parser.parse_args(arguments).opts
    with user_errors(*PREPARATION):
        make_part_shapes(data_folder())
        for model in MODELS:
            for suffix in TRAININGS:
                load_config(f"configs/part_shapes/{model}{suffix}.yaml", opts)
    with user_errors():
        run(opts)


def data_folder() -> Path:
    return Path(os.environ.get("DETECTRON2_DATASETS", "datasets")) / "part_shapes"


def run(opts: Sequence[str]) -> None:
    """Trains and evaluates all models, and writes the table and the picture."""
    start = time.time()
    torch.set_num_threads(min(torch.get_num_threads(), os.cpu_count() or 1))

    rows = []
    for model, title in MODELS.items():
        for suffix, training in TRAININGS.items():
            config = f"configs/part_shapes/{model}{suffix}.yaml"
            record = run_phase(Phase(f"{title}, {training} training", config, opts))
            rows.append([title, training, *headline(record).values()])

    # After the runs: matplotlib is slow to import and not needed before.
    from part_robust.cli.visualize_attack import draw

    weights = "output/part_shapes/deeplab_two_headed_adv/model_best.pth"
    cfg = load_config("configs/part_shapes/deeplab_two_headed_adv.yaml", [*opts, "MODEL.WEIGHTS", weights])
    picture = draw(cfg, cfg.ATTACK.EVAL[0], 6, "output/part_shapes/attack.png")

    threat = f"PGD-{cfg.ATTACK.SPECS[cfg.ATTACK.EVAL[0]].STEPS}, L-inf 8/255"
    headers = [
        "model",
        "training",
        "clean acc. %",
        f"robust acc. % ({threat})",
        "pixel acc. %",
        "attacked pixel acc. %",
    ]
    table = tabulate(rows, headers, tablefmt="github", floatfmt=".1f", missingval="-")
    Path("output/part_shapes/table.md").write_text(table + "\n")
    print(f"\n{table}\n")
    print(f"table: output/part_shapes/table.md   picture: {picture}")
    print("full reports: output/part_shapes/<run>/robustness.json")
    print(f"{(time.time() - start) / 60:.1f} minutes")
