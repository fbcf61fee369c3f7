"""Shows what an attack does to a model: image, perturbation, predicted parts and label before and after.

part-robust visualize-attack --config-file part_shapes/deeplab_two_headed.yaml --attack pgd20 \
        --output output/attack.png MODEL.WEIGHTS output/part_shapes/deeplab_two_headed/model_best.pth
"""

import argparse
from collections.abc import Sequence

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model

from part_robust import load_config
from part_robust.attacks import attack_batch, attack_mode
from part_robust.configured_attacks import build_attacks
from part_robust.data import PartDatasetMapper, get_taxonomy
from part_robust.engine import PartCheckpointer
from part_robust.modeling.external.head import reads_own_file
from part_robust.utils.errors import PREPARATION, UserError, user_errors
from part_robust.visualize import Panel, amplify, check_picture, legend_patches, overlay_parts, save_grid


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True)
    parser.add_argument("--attack", default=None, help="name in ATTACK.SPECS; default: the first of ATTACK.EVAL")
    parser.add_argument("--count", type=int, default=6, help="images, spread evenly over DATASETS.TEST")
    parser.add_argument("--output", default="output/attack.png", help="PNG or JPEG to write")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs that change the config")
    return parser.parse_args(arguments)


def draw(cfg: CfgNode, attack_name: str, count: int, output: str) -> str:
    """Writes the picture of `count` images of DATASETS.TEST under one attack; returns its path."""
    check_picture(output, count)
    if not cfg.DATASETS.TEST:
        raise UserError("DATASETS.TEST must name a data set to draw images of, got none")
    attack = build_attacks(cfg, [attack_name])[attack_name]
    name = cfg.DATASETS.TEST[0]
    taxonomy = get_taxonomy(name)
    records = DatasetCatalog.get(name)
    mapper = PartDatasetMapper(cfg, is_train=False, dataset_name=name)
    batch = [mapper(record) for record in records[:: max(len(records) // count, 1)][:count]]

    model = build_model(cfg)
    if not cfg.MODEL.WEIGHTS and not reads_own_file(model):
        raise UserError("MODEL.WEIGHTS must be the checkpoint of a trained model, got ''")
    PartCheckpointer(model, strict=True).load(cfg.MODEL.WEIGHTS)
    keys = torch.tensor([item["image_id"] for item in batch])
    with attack_mode(model, attack.full_gradient) as inner, torch.no_grad():
        images, padding = inner.preprocess(batch)
        with torch.enable_grad():
            result, _ = attack_batch(attack, inner, batch, keys)
        outputs = [inner.inference(images, padding), inner.inference(result.images, padding)]

    rows, labels = [], []
    for index, item in enumerate(batch):
        clean, attacked = (x[index].permute(1, 2, 0).cpu().numpy() for x in (images, result.images))
        truth = taxonomy.class_names[item["class_id"]]
        panels = [Panel(clean.round().astype("uint8"), f"true: {truth}")]
        for image, batch_output, when in ((clean, outputs[0], "clean"), (attacked, outputs[1], "attacked")):
            found = batch_output[index]
            if when == "attacked":
                delta, threat = attacked - clean, attack.threat_model
                reach = threat.eps if threat.norm == "linf" else float(abs(delta).max())
                panels.append(Panel(amplify(delta, reach), "perturbation"))
            picture = image.round().astype("uint8")
            if "sem_seg" in found:
                prediction = found["sem_seg"].argmax(dim=0).cpu().numpy()
                labels.append(prediction)
                picture = overlay_parts(picture, prediction, taxonomy.num_parts)
            title = when
            if "class_logits" in found:
                probability, guess = found["class_logits"].softmax(dim=0).max(dim=0)
                title = f"{when}: {taxonomy.class_names[int(guess)]} {100 * float(probability):.0f}%"
            panels.append(Panel(picture, title))
        rows.append(panels)
    return str(save_grid(rows, output, legend_patches(labels, taxonomy.part_names)))


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse_arguments(arguments)
    with user_errors(*PREPARATION):
        cfg = load_config(args.config_file, args.opts)
        attack = args.attack or next(iter(cfg.ATTACK.EVAL), "")
        if not attack:
            raise UserError("--attack must name an attack of ATTACK.SPECS, as ATTACK.EVAL is empty")
        print(draw(cfg, attack, args.count, args.output))
