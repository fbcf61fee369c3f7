"""Accuracy under common corruptions, each at several severities; a table and OUTPUT_DIR/corruptions.json.

    part-robust corruptions --config-file part_shapes/deeplab_two_headed.yaml --severities 1,3,5 \
        MODEL.WEIGHTS output/part_shapes/deeplab_two_headed/model_best.pth

Needs pip install part_robust[corruptions].
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.evaluation import inference_on_dataset
from tabulate import tabulate
from torch import nn
from torch.utils.data import DataLoader

from part_robust import load_config
from part_robust.engine import PartCheckpointer
from part_robust.engine.trainer import PartTrainer
from part_robust.evaluation.corruptions import SEVERITIES, CorruptedLoader, corruption_names, mean_over
from part_robust.utils.errors import PREPARATION, user_errors
from part_robust.utils.files import file_sha256, write_json
from part_robust.utils.precision import tf32

METRICS = ("accuracy", "pixel_accuracy", "mIoU")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True)
    parser.add_argument(
        "--corruptions", default="", help="names with commas between; default: the fifteen of the paper"
    )
    parser.add_argument("--severities", default="1,2,3,4,5", help="1 (weak) to 5, with commas between")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs that change the config")
    args = parser.parse_args(arguments)
    with user_errors(*PREPARATION):
        names = args.corruptions.split(",") if args.corruptions else corruption_names()
        severities = [int(text) for text in args.severities.split(",")]
        if not set(severities) <= set(SEVERITIES):
            raise ValueError(f"--severities are some of {SEVERITIES}, are {args.severities}")
        if unknown := set(names) - set(corruption_names("all")):
            raise ValueError(f"no corruption {', '.join(sorted(unknown))}: {', '.join(corruption_names('all'))}")
        cfg = _config(args.config_file, args.opts)
        model = PartTrainer.build_model(cfg).eval()
        PartCheckpointer(model, strict=True).load(cfg.MODEL.WEIGHTS)
    with user_errors():
        evaluate(cfg, model, names, severities)


def evaluate(cfg: CfgNode, model: nn.Module, names: Sequence[str], severities: Sequence[int]) -> None:
    """Prints a table of each data set and writes OUTPUT_DIR/corruptions.json."""
    checkpoint = {"path": cfg.MODEL.WEIGHTS, "sha256": file_sha256(cfg.MODEL.WEIGHTS)}
    record: dict[str, dict] = {"checkpoint": checkpoint, "datasets": {}}
    for dataset in cfg.DATASETS.TEST:
        rows = [{"corruption": "none", "severity": 0, **_scores(cfg, model, dataset)}]
        for name in names:
            for severity in severities:
                scores = _scores(cfg, model, dataset, (name, severity))
                rows.append({"corruption": name, "severity": severity, **scores})
        record["datasets"][dataset] = {"rows": rows, "mean": mean_over(rows[1:], METRICS)}
        shown = [*rows, {"corruption": "mean of the corrupted", **record["datasets"][dataset]["mean"]}]
        print(f"\n{dataset}")
        print(tabulate(shown, headers="keys", tablefmt="github", floatfmt=".2f", missingval="-"))
        write_json(Path(cfg.OUTPUT_DIR) / "corruptions.json", record)


def _config(config_file: str, opts: list[str]) -> CfgNode:
    """Load the config of an evaluation under corruptions.

    Raises:
        ValueError: padding would be corrupted, too.
    """
    cfg = load_config(config_file, opts)
    if cfg.INPUT.TEST_TRANSFORM == "letterbox":
        raise ValueError("INPUT.TEST_TRANSFORM letterbox: the padding would be corrupted, too; use center_crop")
    cfg.TEST.PART_BOX_AP = False
    return cfg


@torch.no_grad()
def _scores(
    cfg: CfgNode, model: nn.Module, dataset: str, corruption: tuple[str, int] | None = None
) -> dict[str, float]:
    """Metrics, percent, on images with one corruption and severity, or as they are."""
    loader: DataLoader | CorruptedLoader = PartTrainer.build_test_loader(cfg, dataset)
    if corruption is not None:
        loader = CorruptedLoader(loader, *corruption)
    with tf32(False):
        results = inference_on_dataset(model, loader, PartTrainer.build_evaluator(cfg, dataset))
    found = {name: value for task in results.values() for name, value in task.items()}
    return {name: found[name] for name in METRICS if name in found}
