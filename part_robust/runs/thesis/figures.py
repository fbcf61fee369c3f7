"""The thesis's figures 2.4, 3.3 and 3.4 from the models of finished runs: what they predict of test images.

Letters: N images, P parts, H W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model
from detectron2.structures import Instances

from part_robust.attacks import attack_batch, attack_mode
from part_robust.config import get_part_robust_cfg
from part_robust.configured_attacks import build_attacks
from part_robust.data import PartDatasetMapper, get_taxonomy
from part_robust.engine import PartCheckpointer
from part_robust.evaluation.conversion import predicted_boxes, predicted_labels
from part_robust.run_config import complete
from part_robust.runs.measured import measured
from part_robust.visualize import Panel, legend_patches, overlay_parts, part_colors, save_grid

# First found is drawn. The thesis's figure 2.4 shows what segmenter and detector learn from boxes.
FIGURE_2_4 = (("deeplab_segmenter_boxes", "deeplab_downsampled_boxes"), ("dino_detector", "dino_sequential"))
FIGURES_3 = {
    "3.3": ("deeplab_two_headed",),
    "3.4": ("mask_dino_simple_learned_1layer", "mask_dino_simple_fixed_9layers"),
}
COUNT = 5  # images in a figure
TOP_BOXES = 10  # the thesis's
SIDE = 256  # pixels of a picture at least, or the outlines of boxes would hide it

Records = Mapping[tuple[str, str], Mapping]


@dataclass(frozen=True)
class Prediction:
    """A model's outputs for N images.

    Attributes:
        images: uint8 (N, H, W, 3) RGB, as the model saw them.
        labels: int64 (N, H, W), 0..P.
        boxes: pred_boxes, scores and pred_classes of each.
        classes: such as "car 93%"; "" without a class head.
    """

    images: np.ndarray
    labels: np.ndarray
    boxes: Sequence[Instances]
    classes: Sequence[str]


class Model:
    """The model of a record and some of the test images that it was evaluated on."""

    def __init__(self, record: Mapping, count: int = COUNT) -> None:
        """Load the model of a record, and the images that are shown.

        Args:
            record: its config and checkpoint are used.
            count: images with part labels, spread evenly over the test set.

        Raises:
            FileNotFoundError: checkpoint or data are gone.
            ImportError: a module of IMPORTS cannot be imported.
        """
        cfg = get_part_robust_cfg()
        cfg.merge_from_other_cfg(CfgNode.load_cfg(record["config"]))
        cfg.MODEL.WEIGHTS = record["checkpoint"]["path"]
        if not Path(cfg.MODEL.WEIGHTS).is_file():
            raise FileNotFoundError(f"checkpoint {cfg.MODEL.WEIGHTS} is not there any more: no figure of it")
        if cfg.MODEL.DEVICE != "cpu" and not torch.cuda.is_available():
            cfg.MODEL.DEVICE = "cpu"
        cfg = complete(cfg)
        (name,) = record["results"]
        self.taxonomy = get_taxonomy(name)
        entries = [entry for entry in DatasetCatalog.get(name) if entry["annotations"]]
        entries = entries[:: max(len(entries) // count, 1)][:count]
        self.items = [PartDatasetMapper(cfg, is_train=False, dataset_name=name)(entry) for entry in entries]
        # A model of painted boxes is shown beside the true masks all the same, where the data have some.
        drawn = all("segmentation" in annotation for entry in entries for annotation in entry["annotations"])
        cfg.INPUT.PART_MASKS = "masks" if drawn else cfg.INPUT.PART_MASKS
        self.true_items = [PartDatasetMapper(cfg, is_train=False, dataset_name=name)(entry) for entry in entries]
        self.model = build_model(cfg)
        PartCheckpointer(self.model, strict=True).load(cfg.MODEL.WEIGHTS)
        attack = measured(record).attack
        # Of a tier its first attack, which all of its images see.
        tier = (record.get("evaluation") or {}).get(name, {}).get("tiers", {}).get(attack)
        self.attack_name = tier["attacks"][0]["name"] if tier else attack
        self.attack = build_attacks(cfg, [self.attack_name])[self.attack_name] if self.attack_name else None

    def truth(self) -> Prediction:
        """The labels in the same form; boxes have scores of 1."""
        boxes = []
        for item in self.true_items:
            found = Instances(item["instances"].image_size)
            found.pred_boxes, found.pred_classes = item["instances"].gt_boxes, item["instances"].gt_classes
            found.scores = torch.ones(len(found))
            boxes.append(found)
        return Prediction(
            np.stack([item["image"].permute(1, 2, 0).numpy() for item in self.true_items]),
            np.stack([item["sem_seg"].numpy() for item in self.true_items]),
            boxes,
            [self.taxonomy.class_names[item["class_id"]] for item in self.true_items],
        )

    def predict(self, attacked: bool = False) -> Prediction:
        """Predict the images, or what an attack makes of them.

        Args:
            attacked: on images under the record's attack.

        Raises:
            ValueError: the record has no attack.
        """
        if attacked and self.attack is None:
            raise ValueError("the record has no attack: its evaluation was clean")
        attack = self.attack if attacked else None
        with attack_mode(self.model, attack is None or attack.full_gradient) as inner, torch.no_grad():
            images, padding = inner.preprocess(self.items)
            if attack is not None:
                with torch.enable_grad():
                    keys = torch.tensor([item["image_id"] for item in self.items])
                    images = attack_batch(attack, inner, self.items, keys)[0].images
            outputs = inner.inference(images, padding)
            size = images.shape[-2:]
            labels = [predicted_labels(output, self.taxonomy.num_parts, size).cpu().numpy() for output in outputs]
            boxes = [found.to("cpu") for found in predicted_boxes(outputs, self.taxonomy.num_parts)]
        return Prediction(
            images.permute(0, 2, 3, 1).round().byte().cpu().numpy(),
            np.stack(labels),
            boxes,
            [self._class_title(output) for output in outputs],
        )

    def _class_title(self, output: Mapping) -> str:
        if "class_logits" not in output:
            return ""
        probability, guess = output["class_logits"].softmax(dim=0).max(dim=0)
        return f"{self.taxonomy.class_names[int(guess)]} {100 * float(probability):.0f}%"


def outline_boxes(image: np.ndarray, found: Instances, num_parts: int, top: int | None = None) -> np.ndarray:
    """Return an image, at least SIDE pixels wide, with the boxes in their parts' colours.

    These are the `top` boxes of the highest scores, all for None.

    Args:
        image: uint8 (H, W, 3).
        found: pred_boxes in its pixels, scores, pred_classes 0..P-1.
        num_parts: P.
        top: number of boxes.

    Returns:
        uint8 (k H, k W, 3) with the least whole number k.
    """
    factor = -(-SIDE // image.shape[1])
    picture = np.ascontiguousarray(image.repeat(factor, axis=0).repeat(factor, axis=1))
    colors = part_colors(num_parts)
    best = found.scores.argsort(descending=True, stable=True)[:top]
    # The surest last, on top of the others.
    for index in best.flip(0).tolist():
        left, upper, right, lower = (round(factor * float(x)) for x in found.pred_boxes.tensor[index])
        color = colors[int(found.pred_classes[index])].tolist()
        cv2.rectangle(picture, (left, upper), (right - 1, lower - 1), color, thickness=2)
    return picture


def figure_2_4(segmenter: Model, detector: Model, path: Path) -> Path:
    """Draw figure 2.4: true and predicted boxes and masks of a segmenter and a detector.

    Rows: (a) images with true boxes, (b) true masks, (c) masks and (d) their boxes of a segmenter, (e) boxes and (f)
    their masks of a detector.
    """
    parts = segmenter.taxonomy.num_parts
    truth, masks, boxes = segmenter.truth(), segmenter.predict(), detector.predict()

    def outlined(prediction: Prediction, top: int | None = None) -> list[np.ndarray]:
        return [outline_boxes(*pair, parts, top) for pair in zip(truth.images, prediction.boxes, strict=True)]

    def overlaid(prediction: Prediction) -> list[np.ndarray]:
        return [overlay_parts(*pair, parts) for pair in zip(truth.images, prediction.labels, strict=True)]

    rows = {
        "(a) true boxes": outlined(truth),
        "(b) true masks": overlaid(truth),
        "(c) DeepLabv3+: masks": overlaid(masks),
        "(d) masks of (c) as boxes": outlined(masks),
        f"(e) DINO: {TOP_BOXES} surest boxes": outlined(boxes, TOP_BOXES),
        "(f) boxes of (e) as masks": overlaid(boxes),
    }
    panels = [
        [Panel(picture, title if index == 0 else "") for index, picture in enumerate(pictures)]
        for title, pictures in rows.items()
    ]
    labels = [*truth.labels, *masks.labels, *boxes.labels]
    return save_grid(panels, path, legend_patches(labels, segmenter.taxonomy.part_names))


def figure_3(model: Model, path: Path) -> Path:
    """A row for each image: itself, its true parts, the predicted parts and class, and both under attack."""
    parts = model.taxonomy.num_parts
    found = {"truth": model.truth(), "clean": model.predict()}
    if model.attack is not None:
        found[model.attack_name] = model.predict(attacked=True)
    rows = []
    for index, image in enumerate(found["truth"].images):
        panels = [Panel(image, "image")]
        for when, prediction in found.items():
            picture = overlay_parts(prediction.images[index], prediction.labels[index], parts)
            panels.append(Panel(picture, f"{when}: {prediction.classes[index]}".rstrip(": ")))
        rows.append(panels)
    labels = [labels for prediction in found.values() for labels in prediction.labels]
    return save_grid(rows, path, legend_patches(labels, model.taxonomy.part_names))


def draw_figures(records: Records, folder: Path, ending: str = "png") -> list[Path]:
    """Those figures whose models are there.

    Args:
        records: (leaf config, "clean" or "adversarial") -> record.
        folder: to write figure_2.4 and the others in.
        ending: "png", "svg" or "pdf".
    """
    written = []
    segmenter, detector = (_first(records, leaves, ("clean",)) for leaves in FIGURE_2_4)
    if segmenter and detector:
        written.append(figure_2_4(Model(segmenter), Model(detector), folder / f"figure_2.4.{ending}"))
    for number, leaves in FIGURES_3.items():
        record = _first(records, leaves, ("adversarial", "clean"))
        if record:
            written.append(figure_3(Model(record), folder / f"figure_{number}.{ending}"))
    return written


def _first(records: Records, leaves: Sequence[str], trainings: Sequence[str]) -> Mapping | None:
    found = (records.get((leaf, training)) for leaf in leaves for training in trainings)
    return next((record for record in found if record), None)
