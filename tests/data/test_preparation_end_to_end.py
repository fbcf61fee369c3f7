"""From files in the public format to a trained and attacked model, through the commands that a user types."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path

import pytest

from part_robust.config import get_part_robust_cfg
from part_robust.data import check as checker
from part_robust.engine import evaluate, train
from part_robust.engine.setup import set_schedule
from part_robust.modeling.part_classifier import with_counts
from tests.data.builtin_names import builtin_below
from tests.data.paco_fixture import write_paco
from tests.data.part_imagenet_fixture import write_ood, write_seg
from tests.toy import TINY

# pycocotools 2.0.11 under NumPy 2
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

ROOT = Path(__file__).parents[2]
CASES = {
    "paco": ("paco", write_paco, ["--allow-missing"]),
    "part_imagenet_ood": ("part_imagenet", lambda root: write_ood(root / "part_imagenet"), ["--unpack"]),
    "part_imagenet_seg": ("part_imagenet", lambda root: write_seg(root / "part_imagenet"), []),
}


def script(path: str):
    """A command line as a module."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("case", CASES)
def test_prepare_check_look_train_evaluate(case, tmp_path, monkeypatch, capsys):
    data, write, flags = CASES[case]
    root = tmp_path / "datasets"
    write(root)
    prepare = script(f"datasets/prepare_{data}.py")
    common = ["--root", str(root), "--workers", "1", *flags]
    assert prepare.main([*common, "--dry-run"]) == 0
    table = capsys.readouterr().out
    assert "| part categories" in table and "differs" in table
    assert prepare.main(common) == 0
    capsys.readouterr()
    for split in ("train", "val", "test"):
        path = root / data / "annotations" / f"{split}.json"
        image_root = path.parent / json.loads(path.read_text())["info"]["part_robust"]["image_root"]
        assert checker.main([str(path), "--image-root", str(image_root)]) == 0, capsys.readouterr().out

    config = ROOT / "configs" / data / "deeplab_two_headed.yaml"
    norms = ("MODEL.RESNETS.NORM", "MODEL.SEM_SEG_HEAD.NORM", "MODEL.PART_CLASSIFIER.HEAD_NORM")
    opts = [
        *TINY,
        *(item for norm in norms for item in (norm, "BN")),
        *("INPUT.TEST_RESIZE", 32, "SOLVER.EPOCHS", 0.0, "SOLVER.MAX_ITER", 2, "SOLVER.STEPS", ()),
        *("ATTACK.SPECS.pgd100x5.STEPS", 1, "ATTACK.SPECS.pgd100x5.RESTARTS", 1),
        *("OUTPUT_DIR", str(tmp_path / "output")),
    ]
    with builtin_below(root):
        monkeypatch.setenv("DETECTRON2_DATASETS", str(root))
        look = script("tools/visualize_data.py")
        for flag in ([], ["--distribution"]):
            picture = tmp_path / f"data{len(flag)}.png"
            monkeypatch.setattr(
                "sys.argv", ["look", "--config-file", str(config), "--count", "4", "--output", str(picture), *flag]
            )
            look.main()
            assert picture.stat().st_size > 10_000
        cfg = with_counts(get_part_robust_cfg(config, opts))
        set_schedule(cfg)
        Path(cfg.OUTPUT_DIR).mkdir()
        results = train(cfg)
        assert math.isfinite(results["classification"]["accuracy"])
        cfg.MODEL.WEIGHTS = str(tmp_path / "output" / "model_final.pth")
        results = evaluate(cfg)
    assert {"classification", "part_seg", "classification_pgd100x5"} <= set(results)
    assert results["classification"]["num_images"] > 5


@pytest.mark.parametrize("data", ["paco", "part_imagenet"])
def test_errors_are_sentences(data, tmp_path, capsys):
    prepare = script(f"datasets/prepare_{data}.py")
    assert prepare.main(["--root", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("FileNotFoundError: ") and "Traceback" not in error and ".zip" in error
