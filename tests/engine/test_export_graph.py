"""The exported class path gives the model's logits, for any number of images, without a line of our code."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys

import pytest
import torch

from part_robust.engine import export_graph as module
from part_robust.engine.export_graph import export_graph
from part_robust.layers.ms_deform_attn import MSDeformAttn
from tests.toy import CLASSES, SIZE, run_cfg, save_run

HEADS = ["deeplab_two_headed", "dino_sequential", "mask_dino_simple"]
OTHERS = ["resnet", "deeplab_downsampled", "deeplab_bounding_box", "deeplab_pixel", "dino_two_headed"]
READ = """
import pathlib, sys, torch
for folder in map(pathlib.Path, sys.argv[1:]):
    images = torch.load(folder / "images.pt")
    (file,) = folder.glob("model.*")
    model = torch.jit.load(str(file)) if file.suffix == ".ts" else torch.export.load(str(file)).module()
    torch.save([model(part) for part in (images[:1], images[:3], images)], folder / "logits.pt")
assert not any(name.split(".")[0] in ("part_robust", "detectron2") for name in sys.modules)
"""


def some_images(number: int) -> torch.Tensor:
    return module._images(number, SIZE, torch.device("cpu"))


def shaken(tmp_path, name: str):
    """A toy whose every weight matters, zero-initialised layers too, with the batch statistics of its images."""
    cfg, model = save_run(tmp_path / "run", name)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
        for layer in model.modules():
            if isinstance(layer, torch.nn.BatchNorm2d):
                layer.momentum = None
                layer.reset_running_stats()
        model.train().class_logits(some_images(16))
        model.eval()
    torch.save({"model": model.state_dict()}, cfg.MODEL.WEIGHTS)
    for layer in model.modules():
        if isinstance(layer, MSDeformAttn):
            layer.backend = "gather"
    return cfg, model


def exported(folder, name: str, kind: str) -> torch.Tensor:
    """Exports a toy to `folder`, puts `images.pt` beside the file, and returns the model's logits of these."""
    cfg, model = shaken(folder.with_name(folder.name + "_run"), name)
    graph = export_graph(cfg, folder, kind)
    assert graph.difference <= 1e-4
    graph.description.unlink()
    images = some_images(5)
    torch.save(images, folder / "images.pt")
    with torch.no_grad():
        wanted = model.class_logits(images)
    return wanted


def same(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    """To a small part of what the images themselves change; `found` may be of the first images alone."""
    error = (found - wanted[: len(found)]).abs().max()
    return bool(error <= 1e-4) and bool(error <= 0.01 * wanted.std(dim=0).min())


def test_a_process_without_our_code(toy_data, tmp_path):
    wanted = {
        tmp_path / f"{name}_{kind}": exported(tmp_path / f"{name}_{kind}", name, kind)
        for name in HEADS
        for kind in ("torchscript", "pt2")
    }
    subprocess.run([sys.executable, "-c", READ, *map(str, wanted)], check=True, cwd=tmp_path, timeout=240)
    for folder, logits in wanted.items():
        found = torch.load(folder / "logits.pt")
        assert [len(part) for part in found] == [1, 3, 5]
        for part in found:
            assert same(part, logits), folder.name


@pytest.mark.parametrize("name", OTHERS)
def test_every_head(toy_data, tmp_path, name):
    wanted = exported(tmp_path / "out", name, "torchscript")
    model = torch.jit.load(str(tmp_path / "out" / "model.ts"))
    for number in (1, 3, 5):
        found = model(torch.load(tmp_path / "out" / "images.pt")[:number])
        assert same(found, wanted)


def test_what_is_said_of_the_file(toy_data, tmp_path):
    cfg, _ = shaken(tmp_path, "deeplab_two_headed")
    graph = export_graph(cfg, tmp_path / "out", "torchscript")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"model.ts", "model.ts.json"}
    said = json.loads(graph.description.read_text())
    assert said["classes"] == list(CLASSES) and said["input"]["shape"] == ["N", 3, SIZE, SIZE]
    assert said["largest_difference"] == graph.difference and "0..255" in said["input"]["values"]


def test_decoders_are_left_out(toy_data, tmp_path):
    cfg, model = shaken(tmp_path, "dino_two_headed")
    graph = export_graph(cfg, tmp_path / "out", "torchscript")
    kept = sum(parameter.numel() for parameter in torch.jit.load(str(graph.path)).parameters())
    assert kept < sum(parameter.numel() for parameter in model.parameters())
    assert not any("segmenter" in name for name, _ in torch.jit.load(str(graph.path)).named_parameters())


@pytest.mark.parametrize("size", [SIZE - 1, 2 * SIZE])
def test_other_sizes_are_refused(toy_data, tmp_path, size):
    cfg, _ = shaken(tmp_path, "deeplab_two_headed")
    graph = export_graph(cfg, tmp_path / "out", "torchscript")
    with pytest.raises(torch.jit.Error, match="of the size that the file was exported for"):
        torch.jit.load(str(graph.path))(torch.zeros(1, 3, size, size))


def test_a_file_that_differs_is_not_written(toy_data, tmp_path, monkeypatch):
    cfg, _ = shaken(tmp_path, "resnet")

    def wrong(path, images, file):
        torch.jit.save(torch.jit.trace(lambda x: path(x) + 2e-4, images), str(file))

    ending, backend, _, read = module.KINDS["torchscript"]
    monkeypatch.setitem(module.KINDS, "torchscript", (ending, backend, wrong, read))
    with pytest.raises(RuntimeError, match="differ from the model's by 0.0002"):
        export_graph(cfg, tmp_path / "out", "torchscript")
    assert not list((tmp_path / "out").iterdir())


def test_mistakes(toy_data, tmp_path, monkeypatch):
    cfg, _ = save_run(tmp_path / "run", "deeplab_segmenter")
    with pytest.raises(ValueError, match="no class head"):
        export_graph(cfg, tmp_path / "out", "torchscript")
    with pytest.raises(ValueError, match="unknown format 'tflite'.*torchscript"):
        export_graph(cfg, tmp_path / "out", "tflite")
    with pytest.raises(ValueError, match="MODEL.WEIGHTS is empty"):
        export_graph(run_cfg(tmp_path, "MODEL.WEIGHTS", ""), tmp_path / "out", "torchscript")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"onnx, onnxscript, onnxruntime.*part_robust\[onnx\]"):
        export_graph(cfg, tmp_path / "out", "onnx")


@pytest.mark.parametrize(("name", "refused"), [("dino_sequential", True), ("deeplab_pixel", False)])
def test_letterbox(toy_data, tmp_path, name, refused):
    """Queries see where the padding is, DeepLab does not."""
    weights = save_run(tmp_path / "run", name)[0].MODEL.WEIGHTS
    cfg = run_cfg(tmp_path, "INPUT.TEST_TRANSFORM", "letterbox", "MODEL.WEIGHTS", weights, model=name)
    if not refused:
        assert export_graph(cfg, tmp_path / "out", "torchscript").path.is_file()
        return
    with pytest.raises(ValueError, match="padding"):
        export_graph(cfg, tmp_path / "out", "torchscript")


@pytest.mark.slow
@pytest.mark.parametrize("name", HEADS)
def test_onnx(toy_data, tmp_path, name):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    cfg, model = shaken(tmp_path, name)
    graph = export_graph(cfg, tmp_path / "out", "onnx")
    session = onnxruntime.InferenceSession(str(graph.path), providers=["CPUExecutionProvider"])
    for number in (1, 3, 5):
        images = some_images(number)
        with torch.no_grad():
            wanted = model.class_logits(images)
        (found,) = session.run(["class_logits"], {"images": images.numpy()})
        assert torch.allclose(torch.from_numpy(found), wanted, atol=1e-4)
