"""The battery for a GPU: it runs whole rows on a CPU, records failures, continues where it ended."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch

TOOLS = Path(__file__).resolve().parent.parent / "tools"


@pytest.fixture
def bench(monkeypatch):
    """The module `benchmarks.gpu`, whose command `run` calls."""
    monkeypatch.syspath_prepend(str(TOOLS))
    for name in [name for name in sys.modules if name.split(".")[0] in ("benchmarks", "benchmark")]:
        monkeypatch.delitem(sys.modules, name)
    module = importlib.import_module("benchmarks.gpu")
    benchmark = importlib.import_module("benchmark")
    small = ["--device", "cpu", "--size", "small"]
    module.command = lambda folder, *options: benchmark.main(["gpu", "--out", str(folder), *small, *options])
    yield module
    torch.set_flush_denormal(False)
    torch.set_num_threads(1)


def rows_in(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]


def only(bench, monkeypatch, wanted):
    """Leaves these rows of the battery."""
    rows_of = bench.rows_of
    monkeypatch.setattr(bench, "rows_of", lambda *args: [row for row in rows_of(*args) if row.name in wanted])


def toy(bench, monkeypatch, *rows):
    monkeypatch.setattr(bench, "rows_of", lambda device, size: [bench.Row(name, run) for name, run in rows])


def test_real_rows(bench, monkeypatch, tmp_path, capsys):
    """One of each kind."""
    names = [
        "check ResNet-50",
        "check DINO sequential",
        "matrix product float32",
        "ResNet-50 PGD-2 training float32",
        "attention float32, forward and backward, grid_sample",
        "attention float32, forward and backward, deformops",
        "ResNet-50 clean training bfloat16",
        "ResNet-50 PGD-3 evaluation float32",
        "ResNet-50 PGD-2 training bfloat16, attention in plain PyTorch",
        "Mask DINO Simple PGD-2 training bfloat16, attention in plain PyTorch",
        "ResNet-50 PGD-2 training bfloat16, optimizer not fused",
    ]
    only(bench, monkeypatch, names)
    bench.command(tmp_path)
    rows = {row["row"]: row for row in rows_in(tmp_path)}
    assert list(rows) == names, "the most important first"
    left_out = {name: row["note"] for name, row in rows.items() if row["status"] == "left out"}
    assert list(left_out) == [names[5], names[8]] and "pip install deformops" in left_out[names[5]]
    assert {row["status"] for name, row in rows.items() if name not in left_out} == {"ok"}
    assert "losses 0.0e+00, gradient 0.0e+00, logits 0.0e+00" in rows[names[0]]["note"]
    for name in names[3:]:
        if name not in left_out:
            assert rows[name]["images_per_s"] == pytest.approx(2000 / rows[name]["ms"])
    product, training = rows[names[2]], rows[names[3]]
    assert product["tflops"] == pytest.approx(2 * 64**3 / product["ms"] / 1e9)
    assert training["ceiling_share"] == pytest.approx(training["tflops"] / product["tflops"])
    table = (tmp_path / "rows.md").read_text()
    assert all(f"| {name} " in table for name in names) and "size small" in table
    assert table in capsys.readouterr().out


def test_the_whole_battery_is_listed(bench):
    size = bench.sizes()["full"]
    for device in ("cpu", "cuda"):
        names = [row.name for row in bench.rows_of(torch.device(device), size)]
        assert len(names) == len(set(names)) > 60
        assert names[0].startswith("check") and "DINO sequential PGD-100 evaluation float32" in names


def test_a_device_that_computes_wrong_is_found(bench, monkeypatch, tmp_path):
    models = sys.modules["benchmarks.gpu_models"]
    numbers, calls = models._numbers, []

    def wrong(case, dtype):
        calls.append(dtype)
        found = numbers(case, dtype)
        return found if len(calls) > 1 else {**found, "gradient": found["gradient"] * 1.001}

    monkeypatch.setattr(models, "_numbers", wrong)
    only(bench, monkeypatch, ["check ResNet-50"])
    bench.command(tmp_path)
    (row,) = rows_in(tmp_path)
    assert row["status"] == "failed" and "gradient differ from the CPU's" in row["note"]


def test_failures_are_recorded_and_rows_are_not_repeated(bench, monkeypatch, tmp_path, capsys):
    calls = []

    def fail(found):
        calls.append("bad")
        raise torch.OutOfMemoryError("first line\nout of memory")

    def run(found):
        calls.append("good")
        return {"ms": 1.0}

    toy(bench, monkeypatch, ("bad", fail), ("good", run))
    bench.command(tmp_path)
    bench.command(tmp_path)
    assert calls == ["bad", "good"]
    assert [(row["row"], row["status"]) for row in rows_in(tmp_path)] == [("bad", "failed"), ("good", "ok")]
    assert rows_in(tmp_path)[0]["note"] == "OutOfMemoryError: out of memory"
    assert "2 of 2 rows are measured" in capsys.readouterr().out
    bench.command(tmp_path, "--again")
    assert calls == ["bad", "good", "bad"]
    # Numbers of another PyTorch or card are not these.
    monkeypatch.setattr(torch, "__version__", "0.0")
    bench.command(tmp_path)
    assert calls == ["bad", "good", "bad", "bad", "good"]


def test_the_time_ends_before_the_rows(bench, monkeypatch, tmp_path, capsys):
    clock = [0.0]
    monkeypatch.setattr(bench.time, "monotonic", lambda: clock[0])

    def run(found):
        clock[0] += 61.0
        return {}

    toy(bench, monkeypatch, *((name, run) for name in "abcd"))
    bench.command(tmp_path, "--minutes", "2")
    assert [row["row"] for row in rows_in(tmp_path)] == ["a", "b"]
    assert "left: 2 rows, from 'c' on" in capsys.readouterr().out
    with (tmp_path / "rows.jsonl").open("a") as file:
        file.write('{"row": "c", "sta')  # the machine stopped here
    bench.command(tmp_path, "--minutes", "2")
    lines = (tmp_path / "rows.jsonl").read_text().splitlines()
    assert [json.loads(line)["row"] for line in lines if line.endswith("}")] == ["a", "b", "c", "d"]


def test_a_device_that_stopped_computing_ends_the_battery(bench, monkeypatch, tmp_path, capsys):
    def fail(found):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    toy(bench, monkeypatch, ("bad", fail), ("good", lambda found: {}))
    monkeypatch.setattr(bench, "works", lambda device: False)
    bench.command(tmp_path)
    assert [row["row"] for row in rows_in(tmp_path)] == ["bad"]
    assert "cpu does not compute any more" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_without_a_gpu_it_says_so(bench, tmp_path):
    with pytest.raises(SystemExit, match="--device must be a device of this machine, got cuda"):
        bench.command(tmp_path, "--device", "cuda")
