"""The class path of a trained model as one file that runs without part_robust: TorchScript, torch.export or ONNX.

Letters: N images, C classes, S the side of the images in pixels (INPUT.SIZE).
"""

from __future__ import annotations

import importlib.util
import json
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn
from torch.nn import functional as F

from part_robust.data import get_taxonomy
from part_robust.engine.export import load_trained
from part_robust.layers.ms_deform_attn import MSDeformAttn
from part_robust.modeling.counts import with_counts
from part_robust.modeling.part_classifier import PartClassifier
from part_robust.modeling.segmenters.query_segmenter import QuerySegmenter
from part_robust.utils.files import write_text
from part_robust.utils.precision import tf32

# Logits of the file and of the model may differ by this much, in float32.
TOLERANCE = 1e-4
BATCHES = (1, 3)


@dataclass(frozen=True)
class Graph:
    """Files that `export_graph` wrote.

    Attributes:
        path: the file.
        description: the json beside it: input, classes, how it was checked.
        difference: the largest one between its logits and the model's.
    """

    path: Path
    description: Path
    difference: float


class ClassPath(nn.Module):
    """float32 images (N, 3, S, S), RGB, 0..255 -> class logits (N, C); normalisation is inside."""

    def __init__(self, model: PartClassifier, size: int) -> None:
        super().__init__()
        self.model = model
        self.size = size

    def forward(self, images: Tensor) -> Tensor:
        return self.model.class_logits(_of_size(images, self.size))


@torch.jit.script_if_tracing
def _of_size(images: Tensor, size: int) -> Tensor:
    # Stays in a traced file, whose own shapes are constants: another size would go through some models in silence.
    if images.dim() != 4 or images.size(1) != 3 or images.size(2) != size or images.size(3) != size:
        raise ValueError("images must be (N, 3, S, S) of the size that the file was exported for")
    return images


def export_graph(cfg: CfgNode, output: Path, kind: str) -> Graph:
    """Writes the file and `<file>.json` to `output`, and checks that it gives the model's class logits.

    The check reads the file back and compares on batches of 1 and 3 images, on the device of MODEL.DEVICE, for which
    the file is made. Deformable attention takes a backend of plain PyTorch operations, in the file and in the model
    that it is compared with.

    Args:
        cfg: of the training, with MODEL.WEIGHTS of the trained model.
        output: folder, made if it is missing.
        kind: "torchscript", "pt2" (torch.export) or "onnx".

    Raises:
        ValueError: an unknown kind; a model without a class head; one that would need to see padding.
        ImportError: "onnx" without its packages.
        RuntimeError: the logits differ; nothing is written then.
    """
    if kind not in KINDS:
        raise ValueError(f"unknown format {kind!r}: choose one of {', '.join(KINDS)}")
    ending, backend, write, read = KINDS[kind]
    if kind == "onnx":
        _need_onnx()
    cfg = with_counts(cfg)
    model = load_trained(cfg).requires_grad_(False)
    if model.head is None:
        raise ValueError("the model has no class head (MODEL.PART_CLASSIFIER.HEAD is empty): there is no class path")
    if not model.head.needs_parts:
        model.segmenter = None
    elif isinstance(model.segmenter, QuerySegmenter) and cfg.INPUT.TEST_TRANSFORM == "letterbox":
        raise ValueError(
            "this model reads which pixels are the padding of INPUT.TEST_TRANSFORM letterbox, the file would only see "
            "images: export with INPUT.TEST_TRANSFORM center_crop, and feed it such images"
        )
    for module in model.modules():
        if isinstance(module, MSDeformAttn):
            module.backend = backend
    size = cfg.INPUT.SIZE
    path = ClassPath(model, size).eval()
    output.mkdir(parents=True, exist_ok=True)
    target, temporary = output / f"model{ending}", output / f"model.tmp{ending}"
    try:
        with torch.no_grad(), tf32(False), warnings.catch_warnings():
            # That shapes become constants is meant; whether it did harm is checked below.
            warnings.simplefilter("ignore")
            write(path, _images(2, size, model.device), temporary)
            difference = _largest_difference(path, read(temporary), size, model.device)
        if not difference <= TOLERANCE:
            raise RuntimeError(
                f"class logits of the {kind} file differ from the model's by {difference:.2g}, more than "
                f"{TOLERANCE:g}: it is not written"
            )
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    return Graph(target, _describe(cfg, target, kind, difference, model.device), difference)


def _images(number: int, size: int, device: torch.device) -> Tensor:
    """Patches and noise: of noise alone, a network's means are the same for all images."""
    generator = torch.Generator().manual_seed(number)
    patches = F.interpolate(torch.rand(number, 3, 4, 4, generator=generator), size=(size, size))
    return (200 * patches + 55 * torch.rand(number, 3, size, size, generator=generator)).to(device)


def _largest_difference(
    path: nn.Module, exported: Callable[[Tensor], Tensor], size: int, device: torch.device
) -> float:
    differences = []
    for number in BATCHES:
        images = _images(number, size, device)
        differences.append((exported(images) - path(images)).abs().max())
    return float(torch.stack(differences).max())  # not a number stays not a number


def _describe(cfg: CfgNode, target: Path, kind: str, difference: float, device: torch.device) -> Path:
    try:
        classes = list(get_taxonomy(cfg.DATASETS.TRAIN[0]).class_names)
    except (FileNotFoundError, IndexError, KeyError):
        classes = []
    size, data = cfg.INPUT.SIZE, cfg.INPUT
    resize = {
        "center_crop": f"short side to {data.TEST_RESIZE or size}, {data.TEST_INTERPOLATION}, then the middle "
        f"{size} x {size}",
        "letterbox": "letterbox",
        "stretch": f"both sides to {size}, {data.TEST_INTERPOLATION}, whatever the shape",
    }
    description = {
        "format": kind,
        "input": {"name": "images", "shape": ["N", 3, size, size], "dtype": "float32", "values": "RGB, 0..255"},
        "resize": resize[data.TEST_TRANSFORM],
        "output": {"name": "class_logits", "shape": ["N", cfg.MODEL.PART_CLASSIFIER.NUM_CLASSES]},
        "classes": classes,
        "device": device.type,
        "weights": os.path.basename(cfg.MODEL.WEIGHTS),
        "largest_difference": difference,
        "torch": torch.__version__,
    }
    path = target.with_name(target.name + ".json")
    write_text(path, json.dumps(description, indent=2) + "\n")
    return path


def _write_torchscript(path: nn.Module, images: Tensor, file: Path) -> None:
    torch.jit.save(torch.jit.trace(path, images, check_trace=False), str(file))


def _write_pt2(path: nn.Module, images: Tensor, file: Path) -> None:
    torch.export.save(torch.export.export(path, (images,), dynamic_shapes=_any_number()), str(file))


def _write_onnx(path: nn.Module, images: Tensor, file: Path) -> None:
    torch.onnx.export(
        path,
        (images,),
        str(file),
        dynamo=True,
        dynamic_shapes=_any_number(),
        input_names=["images"],
        output_names=["class_logits"],
        external_data=False,
        verbose=False,
    )


def _read_onnx(file: Path) -> Callable[[Tensor], Tensor]:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> Tensor:
        (logits,) = session.run(None, {"images": images.cpu().numpy()})
        return torch.from_numpy(logits).to(images.device)

    return run


def _any_number() -> tuple[dict[int, torch.export.Dim]]:
    return ({0: torch.export.Dim("N", min=1)},)


def _need_onnx() -> None:
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(f"format onnx needs {', '.join(missing)}: pip install 'part_robust[onnx]'")


# Ending, backend of deformable attention, and how a file is written and read.
KINDS: dict[str, tuple[str, str, Callable[[nn.Module, Tensor, Path], None], Callable[[Path], Callable]]] = {
    "torchscript": (".ts", "embedding_bag", _write_torchscript, lambda file: torch.jit.load(str(file))),
    "pt2": (".pt2", "embedding_bag", _write_pt2, lambda file: torch.export.load(str(file)).module()),
    "onnx": (".onnx", "gather", _write_onnx, _read_onnx),
}
