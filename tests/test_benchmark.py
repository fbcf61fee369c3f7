"""The benchmark tool runs, and says what it compares; the numbers are nobody's business here."""

from __future__ import annotations

import importlib.util
import re
import sys
import time
from pathlib import Path

import pytest
import torch

TOOLS = Path(__file__).resolve().parent.parent / "tools"


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    for name in [name for name in sys.modules if name.split(".")[0] in ("benchmarks", "crosscheck_attacks")]:
        monkeypatch.delitem(sys.modules, name)
    spec = importlib.util.spec_from_file_location("benchmark", TOOLS / "benchmark.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "benchmark", module)
    spec.loader.exec_module(module)
    yield module
    torch.set_flush_denormal(False)
    torch.set_num_threads(1)


def test_data(benchmark, capsys):
    benchmark.main(["data", "--photos", "2", "--side", "64", "--size", "32", "--repeats", "1"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "2 photographs (first 64 x 64) at 32 pixels, 12.0 parts each"
    names = [line.split("  ")[0] for line in lines[1:5]]
    assert names[0] == "ours" and names[1] == "detectron2, our geometry" and names[3] == "decoding alone"
    assert all("ours is" in line for line in lines[2:4]) and lines[6].startswith("images per second and core: ")


def test_augmentations(benchmark, capsys):
    benchmark.main(["data", "--photos", "2", "--side", "64", "--size", "32", "--repeats", "1", "--augment"])
    lines = capsys.readouterr().out.splitlines()[-7:]
    assert lines[0].split()[:2] == ["with", "none"] and lines[0].endswith("ms an image, +0.00")
    assert all(re.match(r"with [\w ]+ +\d+\.\d\d ms an image, [+-]", line) for line in lines[:6])
    assert re.match(r"colour jitter of a batch on cpu +\d+\.\d\d ms an image", lines[6])


def test_data_of_windows(benchmark, capsys):
    """As PACO's records, which are cut out of their photographs while loading."""
    benchmark.main(["data", "--photos", "2", "--side", "64", "--window", "40", "--size", "32", "--repeats", "1"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "2 photographs (first 40 x 40) at 32 pixels, 12.0 parts each"
    assert [line.split("  ")[0] for line in lines[1:4]] == ["ours", "decoding alone", "decoding, JPEG draft mode"]
    assert lines[4].startswith("images per second and core: ")
    assert re.match(r"draft mode changes [1-9]\d*% of the pixels", lines[-1])


def test_dino(benchmark, capsys):
    size = ["--layers", "1", "--queries", "20", "--parts", "3", "--size", "64"]
    benchmark.main(["dino", *size, "--images", "1", "--repeats", "1"])
    lines = capsys.readouterr().out.splitlines()
    assert "1/1 layers, 20 queries" in lines[0] and "backward to the input" in lines[0]
    assert [line.split("|")[2].strip() for line in lines[3:]] == ["ours", "ours, whole gradient"]


def test_mask_dino(benchmark, capsys):
    size = ["--layers", "1", "--encoder-layers", "1", "--queries", "10", "--parts", "3", "--size", "64"]
    benchmark.main(["mask_dino", *size, "--images", "2", "--repeats", "1"])
    lines = capsys.readouterr().out.splitlines()
    assert "1 encoder and 1 decoder layers, 10 queries" in lines[0]
    jobs = [line.split("|")[2].strip() for line in lines[3:]]
    assert set(jobs) == {"inference", "to the input, classes", "to the input, label maps", "training step"}


def test_attention(benchmark, capsys):
    benchmark.main(["ms_deform_attn", "--size", "56", "--queries", "5", "--repeats", "1", "--clock", "cpu"])
    out = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in out.splitlines()[3:]]
    assert [row[1:3] for row in rows] == [
        [what, name] for what in ("forward", "forward + backward") for name in ("embedding_bag", "gather", "sparse")
    ]
    assert all(float(row[3]) > 0 and float(row[4]) > 0 for row in rows), "time and memory"


@pytest.mark.parametrize(("command", "name"), [("dino", "DINO"), ("mask_dino", "MaskDINO")])
def test_a_folder_that_is_no_checkout_is_named(benchmark, tmp_path, command, name):
    with pytest.raises(FileNotFoundError, match=f"not a checkout of IDEA-Research/{name}"):
        benchmark.main([command, "--official", str(tmp_path), "--layers", "1", "--queries", "20"])


def table_rows(lines):
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("|")][2:]


def test_attack(benchmark, capsys):
    shapes = TOOLS.parent / "configs" / "part_shapes"
    models = [str(shapes / f"{name}.yaml") for name in ("deeplab_two_headed", "mask_dino_simple")]
    size = ["--size", "64", "--images", "1", "--steps", "2", "--attacked-images", "4", "--attacked-size", "32"]
    benchmark.main(["attack", "--config-files", *models, *size, "--long-steps", "30", "--repeats", "1"])
    first, second = capsys.readouterr().out.split("\n\n")
    rows = table_rows(first.splitlines())
    assert [row[0] for row in rows] == ["part_shapes/deeplab_two_headed"] * 5 + ["part_shapes/mask_dino_simple"] * 5
    for row in rows:
        assert float(row[4]) == pytest.approx(float(row[2]) / float(row[3]), rel=0.1)
    assert [row[5] for row in rows[:5]] == ["<= 1.05", "< 0.75", "", "", "<= 1.1"]
    (pgd, apgd) = table_rows(second.splitlines())
    assert (pgd[0], apgd[0]) == ("pgd, 30 steps", "apgd_ce, 30 steps")
    for row in (pgd, apgd):
        broken, differ, early, full = map(int, row[1:5])
        assert 0 < broken < 4 and differ == 0 and early < full
        assert float(row[5]) == pytest.approx(early / full, abs=0.01)


def test_bounded(benchmark):
    """The sample is a part of what stands, and what falls in it counts."""
    module = sys.modules["benchmarks.bounded"]
    torch.manual_seed(0)
    net = torch.nn.Sequential(module.architectures()["perceptron"]()).requires_grad_(False)
    images, _ = module.toy_images(60, seed=1)
    labels = net(images).argmax(dim=1)
    outcome = module.bounded(net, images, labels, 20.0, time.process_time, EPS=0.5, STEPS=4)
    whole = module.ours(net, images, labels, module.STANDARD[:2], EPS=0.5, STEPS=4)
    assert outcome.stood == int(whole.robust.sum()) and 0 < outcome.drawn < outcome.stood
    assert int((whole.robust & ~outcome.robust).sum()) <= outcome.drawn and outcome.at_most_more <= 12
    assert outcome.forwards > whole.forwards


def test_pyautoattack_that_is_missing_is_named(benchmark, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyautoattack", None)
    images = torch.zeros(1, 3, 8, 8)
    with pytest.raises(SystemExit, match=r"pip install part_robust\[aa\]"):
        sys.modules["benchmarks.attack"]._beside_autoattack(None, images, torch.zeros(1), 1.0, None)
