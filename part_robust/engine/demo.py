"""Predictions of a trained model for image files without annotations, before and after an attack.

Letters: N images, C classes, P parts (label P is background), H W pixels.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances
from torch import Tensor

from part_robust.attacks import Attack, attack_batch, attack_mode
from part_robust.configured_attacks import build_attacks
from part_robust.data import get_taxonomy
from part_robust.data.image_file import ImageFileMapper
from part_robust.engine.checkpoint import PartCheckpointer
from part_robust.evaluation.conversion import predicted_labels
from part_robust.modeling.counts import with_counts
from part_robust.utils.errors import UserError
from part_robust.utils.precision import tf32
from part_robust.visualize import Panel, amplify, legend_patches, overlay_boxes, overlay_parts, save_grid

logger = logging.getLogger(__name__)

TOP = 3
# Files of a run or of an export, the best first.
WEIGHTS = ("model_best.pth", "model_final.pth", "model.pth")


@dataclass(frozen=True)
class Seen:
    """Prediction for one image.

    Attributes:
        picture: uint8 (H, W, 3), the image with the parts over it.
        classes: the most probable ones with their probabilities, at most TOP; empty without a class head.
        parts: labels of the parts found.
    """

    picture: np.ndarray
    classes: list[tuple[str, float]]
    parts: np.ndarray

    def words(self) -> str:
        """Return the classes with their probabilities, as text."""
        return ", ".join(f"{name} {100 * probability:.0f} %" for name, probability in self.classes)


class Demo:
    """A trained model and the names of what it knows.

    Attributes:
        class_names: C names; "class 0" and so on where the training set is not there to say them.
        part_names: P names.
    """

    def __init__(self, cfg: CfgNode, min_score: float = 0.3) -> None:
        """Load the trained model.

        Args:
            cfg: of the training, with MODEL.WEIGHTS of the trained model.
            min_score: of the boxes that count as found, 0..1.

        Raises:
            FileNotFoundError: the weights are missing; the training set is, and the model cannot be built without it.
            ValueError: MODEL.WEIGHTS is empty, or of another model.
        """
        if not cfg.MODEL.WEIGHTS:
            raise ValueError("no weights: give --weights, for example output/run/model_best.pth")
        self.cfg = with_counts(cfg)
        if torch.device(self.cfg.MODEL.DEVICE).type == "cuda" and not torch.cuda.is_available():
            self.cfg.MODEL.DEVICE = "cpu"
        if not 0 <= min_score <= 1:
            raise UserError(f"--min-score must be a number from 0 to 1, got {min_score}")
        self.min_score = min_score
        self.class_names, self.part_names = _names(self.cfg)
        self.mapper = ImageFileMapper(self.cfg)
        self.model = build_model(self.cfg).eval()
        PartCheckpointer(self.model, strict=True).load(self.cfg.MODEL.WEIGHTS)

    def label(self, name: str) -> int:
        """Return the index of a class by its name.

        Raises:
            ValueError: no such class; lists those there are.
        """
        if self.model.head is None:
            raise ValueError("this model has no class head, so there is no class to name")
        if name not in self.class_names:
            raise ValueError(f"no class {name!r}, the model knows: {', '.join(self.class_names)}")
        return self.class_names.index(name)

    def run(
        self, paths: Sequence[Path], output: Path, attack: Attack | None = None, label: int | None = None
    ) -> Iterator[tuple[Path, str]]:
        """Draws a sheet for each file, and yields its path and what it shows in one line.

        Args:
            paths: image files.
            output: folder, made if it is missing.
            attack: also attack every image.
            label: the class an attack leads away from; the predicted one if None.

        A file that cannot be read is yielded with an empty line and the reason in the log; the others continue.
        """
        taken: set[str] = set()
        size = max(self.cfg.DATALOADER.TEST_BATCH_SIZE, 1)
        for start in range(0, len(paths), size):
            batch = []
            for path in paths[start : start + size]:
                try:
                    batch.append(self.mapper(path))
                except ValueError as error:
                    logger.error("%s", error)
                    yield path, ""
            for item, line, sheet in self._sheets(batch, attack, label) if batch else ():
                path = output / _new_name(Path(item["file_name"]).stem, taken)
                rows, legend = sheet
                save_grid([rows], path, legend_patches(legend, self.part_names), panel_inches=2.6)
                yield Path(item["file_name"]), f"{line} | {path}"

    def _sheets(
        self, batch: list[dict], attack: Attack | None, label: int | None
    ) -> Iterator[tuple[dict, str, tuple[list[Panel], list[np.ndarray]]]]:
        """Yield of each image its item, a line about it, and panels with the part labels in them."""
        with torch.no_grad(), tf32(False):
            images, padding = self.model.preprocess(batch)
            outputs = self.model.inference(images, padding)
        attacked, after = images, outputs
        if attack is not None:
            truths = [self._as_truth(item, found, label) for item, found in zip(batch, outputs, strict=True)]
            with attack_mode(self.model, attack.full_gradient) as inner:
                result, _ = attack_batch(attack, inner, truths, torch.tensor([item["image_id"] for item in batch]))
            attacked = result.images.detach()
            attack.threat_model.verify(attacked, images)
            with torch.no_grad(), tf32(False):
                after = self.model.inference(attacked, padding)
        for index, item in enumerate(batch):
            height, width = item.get("content_size", images.shape[-2:])
            inside = slice(height), slice(width)
            clean = _pixels(images[index])[inside]
            seen = self._seen(outputs[index], clean, inside)
            panels = [Panel(_picture(clean), Path(item["file_name"]).name), Panel(seen.picture, _title("", seen))]
            line, parts = self._line(seen), [seen.parts]
            if attack is not None:
                changed = _pixels(attacked[index])[inside]
                then = self._seen(after[index], changed, inside)
                threat, delta = attack.threat_model, changed - clean
                reach = threat.eps if threat.norm == "linf" else float(np.abs(delta).max())
                words = f"{type(attack).__name__}, {threat.norm} {threat.eps:g}/255"
                note = " (zero gradient: the attack had no effect)" if bool(result.zero_gradient[index]) else ""
                panels += [
                    Panel(amplify(delta, reach), f"perturbation x {127.5 / max(reach, 1e-6):.0f}\n{words}{note}"),
                    Panel(_picture(changed), "attacked"),
                    Panel(then.picture, _title("attacked: ", then)),
                ]
                aim = f" from {self.class_names[truths[index]['class_id']]}" if self.model.head is not None else ""
                line += f" | {words}{aim}: {self._line(then)}{note}"
                parts.append(then.parts)
            yield item, line, (panels, parts)

    def _seen(self, output: dict, image: np.ndarray, inside: tuple[slice, slice]) -> Seen:
        """Return the prediction for an image (H, W, 3) without its padding."""
        picture, number = _picture(image), len(self.part_names)
        parts, classes = np.zeros(0, dtype=np.int64), []
        if "sem_seg" in output:
            labels = output["sem_seg"].argmax(dim=0).cpu().numpy()[inside]
            picture = overlay_parts(picture, labels, number)
            parts = np.unique(labels[labels < number])
        elif "instances" in output:
            sure = self._sure(output["instances"])
            found = sure.pred_classes.cpu().numpy()
            picture = overlay_boxes(picture, sure.pred_boxes.tensor.detach().cpu().numpy(), found, number)
            parts = np.unique(found)
        if "class_logits" in output:
            probabilities = output["class_logits"].float().softmax(dim=0)
            values, indices = probabilities.topk(min(TOP, len(probabilities)))
            classes = [(self.class_names[i], v) for i, v in zip(indices.tolist(), values.tolist(), strict=True)]
        return Seen(picture, classes, parts)

    def _sure(self, instances: Instances) -> Instances:
        return instances[instances.scores >= self.min_score]

    def _line(self, seen: Seen) -> str:
        words = [seen.words()] if seen.classes else []
        if self.model.segmenter is not None:
            words.append("parts " + (", ".join(self.part_names[i] for i in seen.parts) or "none"))
        return "; ".join(words)

    def _as_truth(self, item: dict, output: dict, label: int | None) -> dict:
        """The item with what an attack leads away from: a class, and the parts the model itself has found."""
        size = item["image"].shape[-2:]
        if label is None:
            label = int(output["class_logits"].argmax()) if "class_logits" in output else 0
        number = len(self.part_names)
        labels = torch.full(size, number, dtype=torch.int64)
        if self.model.segmenter is not None:
            labels = predicted_labels(output, number, size).cpu()
        if "content_size" in item:
            height, width = item["content_size"]
            ignored = 255 if number <= 254 else 65535
            labels[height:], labels[:, width:] = ignored, ignored
        found = _no_instances(size)
        if "instances" in output:
            found = self._sure(output["instances"]).to("cpu")
        masks = found.pred_masks if found.has("pred_masks") else torch.zeros(len(found), *size)
        instances = Instances(
            size, gt_boxes=found.pred_boxes, gt_classes=found.pred_classes, gt_masks=BitMasks(masks.bool())
        )
        return {**item, "class_id": label, "part_supervision": "full", "sem_seg": labels, "instances": instances}


def build_demo_attack(cfg: CfgNode, name: str) -> Attack:
    """An attack of ATTACK.SPECS.

    Raises:
        KeyError: no such attack; lists those there are.
    """
    return build_attacks(cfg, [name])[name]


def run_files(folder: str | Path) -> tuple[Path, Path]:
    """Config and weights of a training's or an export's folder.

    Raises:
        FileNotFoundError: the folder lacks one of them.
    """
    folder = Path(folder)
    config = folder / "config.yaml"
    if not config.is_file():
        raise FileNotFoundError(f"{config} does not exist: --run takes the OUTPUT_DIR of a training, or an export")
    weights = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if weights is None:
        raise FileNotFoundError(f"{folder} holds no weights ({', '.join(WEIGHTS)}): name a file with --weights")
    return config, weights


def _names(cfg: CfgNode) -> tuple[list[str], list[str]]:
    """Class and part names of the training set, or numbers where it is not on this machine."""
    node = cfg.MODEL.PART_CLASSIFIER
    try:
        taxonomy = get_taxonomy(cfg.DATASETS.TRAIN[0])
    except (FileNotFoundError, IndexError, KeyError):
        logger.warning("The training set is not there to say the names of its classes and parts: they are numbered")
        return [f"class {i}" for i in range(node.NUM_CLASSES)], [f"part {i}" for i in range(node.NUM_PARTS)]
    names = list(taxonomy.class_names), list(taxonomy.part_names)
    for key, number, found in (("NUM_CLASSES", node.NUM_CLASSES, names[0]), ("NUM_PARTS", node.NUM_PARTS, names[1])):
        if number and number != len(found):
            raise ValueError(f"MODEL.PART_CLASSIFIER.{key} is {number}, {cfg.DATASETS.TRAIN[0]} has {len(found)}")
    return names


def _new_name(stem: str, taken: set[str]) -> str:
    """File name of a sheet; files of one name from several folders are numbered."""
    names: Iterable[str] = (f"{stem}{suffix}.png" for suffix in ("", *(f"_{i}" for i in range(2, len(taken) + 3))))
    name = next(name for name in names if name not in taken)
    taken.add(name)
    return name


def _no_instances(size: tuple[int, int]) -> Instances:
    return Instances(size, pred_boxes=Boxes(torch.zeros(0, 4)), pred_classes=torch.zeros(0, dtype=torch.int64))


def _pixels(image: Tensor) -> np.ndarray:
    """(3, H, W) -> float32 (H, W, 3)."""
    return image.permute(1, 2, 0).cpu().numpy()


def _picture(image: np.ndarray) -> np.ndarray:
    return image.round().clip(0, 255).astype(np.uint8)


def _title(when: str, seen: Seen) -> str:
    return "\n".join([f"{when}{seen.words().split(', ')[0] or 'parts'}", *seen.words().split(", ")[1:]])
