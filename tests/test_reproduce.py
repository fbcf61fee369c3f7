"""The tool behind the tables: which runs, in which order, and what becomes of their records."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from part_robust.config import get_part_robust_cfg

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def reproduce(monkeypatch, tmp_path):
    spec = importlib.util.spec_from_file_location("reproduce", ROOT / "tools" / "reproduce.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "make_part_shapes", lambda root: None)
    monkeypatch.chdir(tmp_path)
    return module


def test_every_run_has_a_config_and_comes_after_the_one_it_needs(reproduce):
    for table in reproduce.TABLES:
        made = set()
        for (_, supervision, training), config in reproduce.runs(table):
            cfg = get_part_robust_cfg(ROOT / config)
            assert cfg.ATTACK.TRAIN.ENABLED == (training == "adversarial")
            assert (cfg.INPUT.PART_MASKS == "boxes") == (supervision == "boxes")
            if training == "adversarial":
                assert str(Path(cfg.MODEL.WEIGHTS).parent) in made
            made.add(str(Path(cfg.OUTPUT_DIR)))
        assert len(made) == len(reproduce.runs(table))
    # Five DeepLab variants under two kinds of supervision and the baseline, each trained twice.
    assert len(reproduce.runs("part_shapes_deeplab")) == 22
    # Ten rows of detectors in the thesis's Tables 2.2 and 2.3.
    assert len(reproduce.runs("part_imagenet_dino")) == 2 * 10


def test_table(reproduce, monkeypatch, tmp_path, capsys):
    phases = []

    def run_phase(phase):
        phases.append(phase)
        parts = {"pixel_accuracy": 70.0, "num_images": 9.0}
        tasks = {"part_seg": parts, "part_box": {"AP": 20.0, "AP50": 40.0}, "part_box_pgd20": {"AP": 2.0}}
        if "segmenter" not in phase.config_file:
            classes = {"accuracy": 81.25, "num_images": 10.0}
            tasks = {"classification": classes, "classification_pgd20": {"accuracy": 3.0}, **tasks}
        return {"results": {"data": tasks}, "attacks": {"pgd20": {"steps": 20}}, "warnings": {"data": ["beware"]}}

    monkeypatch.setattr(reproduce, "run_phase", run_phase)
    arguments = [
        "part_shapes_deeplab",
        "--only",
        "deeplab_segmenter",
        "--only",
        "deeplab_pixel",
        "SOLVER.MAX_ITER",
        "3",
    ]
    reproduce.main(arguments)
    assert [Path(phase.config_file).stem for phase in phases] == [
        f"deeplab_{model}{boxes}{adv}"
        for model in ("segmenter", "pixel")
        for boxes in ("", "_boxes")
        for adv in ("", "_adv")
    ]
    assert all(list(phase.opts) == ["SOLVER.MAX_ITER", "3"] for phase in phases)
    (path,) = (tmp_path / "output").iterdir()
    text = path.read_text()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    # Without the columns that no run has a number for: attacked pixel accuracy and AP50, masks' AP.
    titles = ["acc., clean", "acc., pgd20", "pixel acc., clean", "AP, clean", "AP, pgd20", "AP50, clean"]
    assert rows[0] == ["model", "supervision", "training", *titles]
    assert rows[2] == ["DeepLabv3+, parts only", "masks", "clean", "-", "-", "70.0", "20.0", "2.0", "40.0"]
    assert rows[-1][:5] == ["Pixel", "boxes", "adversarial", "81.2", "3.0"]
    assert len(rows) == 2 + 8
    assert "10 images of data" in text and "'steps': 20" in text
    assert "- Pixel, boxes, clean: beware" in text
    assert text in capsys.readouterr().out


def test_unknown_models_are_refused(reproduce, capsys):
    with pytest.raises(SystemExit):
        reproduce.main(["part_shapes_deeplab", "--only", "deeplab_pixle"])
    assert "deeplab_pixle" in capsys.readouterr().err
