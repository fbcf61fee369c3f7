"""The benchmark tool runs, and says what it compares; the numbers are nobody's business here."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

TOOLS = Path(__file__).resolve().parent.parent / "tools"


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    for name in ("timing", "bench_attention", "bench_dino", "bench_mask_dino"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    spec = importlib.util.spec_from_file_location("benchmark", TOOLS / "benchmark.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "benchmark", module)
    spec.loader.exec_module(module)
    yield module
    torch.set_flush_denormal(False)
    torch.set_num_threads(1)


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
    with pytest.raises(FileNotFoundError, match=f"no checkout of IDEA-Research/{name}"):
        benchmark.main([command, "--official", str(tmp_path), "--layers", "1", "--queries", "20"])
