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
from part_robust.modeling.counts import with_counts
from tests.data.builtin_names import builtin_below
from tests.data.paco_fixture import write_paco
from tests.data.part_imagenet_fixture import write_ood, write_seg
from tests.toy import TINY

# pycocotools 2.0.11 under NumPy 2
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

ROOT = Path(__file__).parents[2]
CASES = {
    "paco": ("paco", write_paco, ["--allow-missing"], ["deeplab_two_headed", "mask_dino_simple"]),
    "part_imagenet_ood": (
        "part_imagenet",
        lambda root: write_ood(root / "part_imagenet"),
        ["--unpack"],
        ["deeplab_two_headed"],
    ),
    "part_imagenet_seg": (
        "part_imagenet",
        lambda root: write_seg(root / "part_imagenet"),
        [],
        ["deeplab_two_headed"],
    ),
}
# Mask DINO at a size for tests.
SMALL = [
    *("MODEL.MASK_DINO.ENCODER_LAYERS", 1),
    *("MODEL.MASK_DINO.NUM_QUERIES", 10),
    *("MODEL.MASK_DINO.DIM", 16),
    *("MODEL.MASK_DINO.MASK_DIM", 16),
    *("MODEL.MASK_DINO.HEADS", 2),
    *("MODEL.MASK_DINO.FEEDFORWARD_DIM", 16),
    *("MODEL.MASK_DINO.ENCODER_FEEDFORWARD_DIM", 16),
]


def script(path: str):
    """A command line as a module."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("case", CASES)
def test_prepare_check_look_train_evaluate(case, tmp_path, monkeypatch, capsys):
    data, write, flags, models = CASES[case]
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
        *SMALL,
        *(item for norm in norms for item in (norm, "BN")),
        *("INPUT.TEST_RESIZE", 32, "SOLVER.EPOCHS", 0.0, "SOLVER.MAX_ITER", 2, "SOLVER.STEPS", ()),
        *("ATTACK.SPECS.pgd100x5.STEPS", 1, "ATTACK.SPECS.pgd100x5.RESTARTS", 1),
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
        for model in models:
            output = tmp_path / model
            config = config.with_name(f"{model}.yaml")
            cfg = with_counts(get_part_robust_cfg(config, [*opts, "OUTPUT_DIR", str(output)]))
            set_schedule(cfg)
            output.mkdir()
            results = train(cfg)
            assert math.isfinite(results["classification"]["accuracy"])
            cfg.MODEL.WEIGHTS = str(output / "model_final.pth")
            results = evaluate(cfg)
            assert {"classification", "part_seg", "classification_pgd100x5", "part_seg_pgd100x5"} <= set(results)
            assert results["classification"]["num_images"] > 5


@pytest.mark.parametrize("data", ["paco", "part_imagenet"])
def test_errors_are_sentences(data, tmp_path):
    prepare = script(f"datasets/prepare_{data}.py")
    with pytest.raises(SystemExit, match=r"^FileNotFoundError: [^\n]*\.zip[^\n]*$"):
        prepare.main(["--root", str(tmp_path)])
