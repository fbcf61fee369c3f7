"""What a user types first: `import part_robust`, `load_config`, `model_zoo`; from a path or by a config's name."""

from __future__ import annotations

import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from detectron2 import model_zoo as detectron2_zoo
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import default_argument_parser

import part_robust
from part_robust import model_zoo
from part_robust.cli import convert_checkpoint
from part_robust.config import default_cfg, find_config, get_part_robust_cfg
from part_robust.data.part_shapes import make_part_shapes
from part_robust.engine.setup import setup
from part_robust.evaluation.verification import recorded_config
from part_robust.modeling import PartClassifier
from part_robust.runs.two_phase import phases
from part_robust.utils.files import file_sha256
from tests.data.builtin_names import builtin_below
from tests.toy import MODELS, TINY, write_toy

ROOT = Path(__file__).resolve().parent.parent
# What a script of one's own begins with, in a process where nothing else was imported.
SCRIPT = """
import sys, part_robust
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model
cfg = part_robust.load_config("quick_schedules/resnet50_instant_test.yaml",
    ["MODEL.DEVICE", "cpu", "MODEL.PART_CLASSIFIER.NUM_CLASSES", 3])
print(type(build_model(cfg)).__name__)
print(type(part_robust.build_attack(cfg.ATTACK.SPECS.pgd20)).__name__)
print("part_robust_paco_train" in DatasetCatalog.list())
print(part_robust.__version__, part_robust.register_part_dataset.__name__, part_robust.get_part_robust_cfg.__name__)
print([name for name in ("part_robust.engine", "part_robust.evaluation", "matplotlib.pyplot") if name in sys.modules])
"""


def test_import_registers_everything_and_no_more(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    names = f"{part_robust.__version__} register_part_dataset get_part_robust_cfg"
    assert done.stdout.splitlines() == ["PartClassifier", "PGD", "True", names, "[]"]


def test_missing_detectron2_is_named(tmp_path):
    script = "import sys; sys.modules['detectron2'] = None; import part_robust"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    last = done.stderr.splitlines()[-1]
    assert last.startswith("ImportError: part_robust needs detectron2") and "pip install --no-build-isolation" in last


def test_a_path_that_exists_wins_over_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("paco/mask_dino_simple.yaml", "configs/paco/mask_dino_simple.yaml", "./paco/mask_dino_simple.yaml"):
        assert find_config(name) == ROOT / "configs" / "paco" / "mask_dino_simple.yaml"
    own = tmp_path / "paco" / "mask_dino_simple.yaml"
    own.parent.mkdir()
    own.write_text("SEED: 7\n")
    assert get_part_robust_cfg("paco/mask_dino_simple.yaml").SEED == 7
    with pytest.raises(FileNotFoundError, match=r"mask_dino_simpel.yaml does not exist.*paco/mask_dino_simple.yaml"):
        find_config("paco/mask_dino_simpel.yaml")


def test_bases_are_beside_the_file_or_the_package_s(tmp_path):
    (tmp_path / "own.yaml").write_text("SEED: 3\nSOLVER: {EPOCHS: 9.0}\n")
    config = tmp_path / "mine.yaml"
    config.write_text(
        '_BASE_: ["models/resnet50.yaml", "attacks/pgd10_eps8.yaml", "own.yaml"]\nSOLVER: {MAX_ITER: 4}\n'
    )
    cfg = get_part_robust_cfg(config)
    assert (cfg.SEED, cfg.SOLVER.EPOCHS, cfg.SOLVER.MAX_ITER) == (3, 9.0, 4)
    assert cfg.ATTACK.TRAIN.ENABLED and cfg.MODEL.PART_CLASSIFIER.HEAD == "LinearHead"
    config.write_text('_BASE_: "nothing.yaml"')
    with pytest.raises(FileNotFoundError, match=r"nothing\.yaml"):
        get_part_robust_cfg(config)
    for text, words in (
        ("", "mapping"),
        ("- 1", "mapping"),
        ("_BASE_: [own.yaml]\nSEED: {A: 1}", "SEED must be a value"),
    ):
        config.write_text(text)
        with pytest.raises(ValueError, match=words):
            get_part_robust_cfg(config)


def test_load_config_imports_registers_and_counts(tmp_path, monkeypatch):
    path, root = write_toy(tmp_path)
    (tmp_path / "my_head.py").write_text("imported = True\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    opts = [
        *TINY, *MODELS["deeplab_two_headed"],
        *("IMPORTS", ["my_head"], "DATASETS.REGISTER", [["front_door_train", str(path), str(root)]]),
        *("DATASETS.TRAIN", ("front_door_train",)),
    ]  # fmt: skip
    cfg = part_robust.load_config(None, opts)
    assert sys.modules.pop("my_head").imported
    assert (cfg.MODEL.PART_CLASSIFIER.NUM_CLASSES, cfg.MODEL.PART_CLASSIFIER.NUM_PARTS) == (3, 3)
    assert not cfg.is_frozen()


def test_the_page_s_script_and_config(tmp_path, monkeypatch):
    """Of docs/commands.md, in the folder of the data."""
    page = (ROOT / "docs" / "commands.md").read_text()
    (script,), (config,) = (re.findall(rf"```{kind}\n(.+?)```", page, re.DOTALL) for kind in ("python", "yaml"))
    path, _ = write_toy(tmp_path)
    (tmp_path / "annotations").mkdir()
    path.rename(tmp_path / "annotations" / "train.json")
    monkeypatch.chdir(tmp_path)
    found = {}
    try:
        exec(script, found)
    finally:
        DatasetCatalog.pop("mine_train", None), MetadataCatalog.pop("mine_train", None)
    assert found["model"].eval().class_logits(torch.zeros(1, 3, 64, 64)).shape == (1, 3)
    (tmp_path / "mine.yaml").write_text(config)
    assert get_part_robust_cfg("mine.yaml").SOLVER.BASE_LR == 5e-5


def test_runs_are_set_up_by_a_config_s_name(tmp_path, monkeypatch):
    """Its log shows the file, and beside x_adv.yaml there is x.yaml, wherever the package's configs are."""
    monkeypatch.chdir(tmp_path)
    make_part_shapes(tmp_path / "part_shapes", {"train": 8, "val": 1, "test": 1}, image_size=32)
    words = ["--config-file", "part_shapes/deeplab_two_headed_adv.yaml", "MODEL.DEVICE", "cpu"]
    clean, adversarial = phases(default_argument_parser().parse_args(words))
    with builtin_below(tmp_path):
        setup(clean.arguments()), setup(adversarial.arguments())
    for name in ("deeplab_two_headed", "deeplab_two_headed_adv"):
        assert f"{name}.yaml" in (tmp_path / "output" / "part_shapes" / name / "log.txt").read_text()


def own_data(tmp_path: Path, monkeypatch, name: str) -> CfgNode:
    """A config of a user's own data, whose module is not imported and whose data are not registered yet."""
    path, root = write_toy(tmp_path)
    (tmp_path / f"{name}.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    data = ["DATASETS.REGISTER", [[name, str(path), str(root)]], "DATASETS.TRAIN", (name,)]
    return get_part_robust_cfg(None, [*TINY, *MODELS["resnet"], *data, "IMPORTS", [name]])


def test_conversion_of_checkpoints_knows_own_data(tmp_path, monkeypatch):
    (tmp_path / "config.yaml").write_text(own_data(tmp_path, monkeypatch, "own_of_conversion").dump())
    torch.save({"model": {"a.weight": torch.zeros(1)}}, tmp_path / "in.pth")
    words = [str(tmp_path / "in.pth"), str(tmp_path / "out.pth"), "--config-file", str(tmp_path / "config.yaml")]
    # The model was built, and the file is what is wrong.
    with pytest.raises(SystemExit, match=r"the first keys are a\.weight"):
        convert_checkpoint.main(words)
    assert "own_of_conversion" in sys.modules


def test_verification_imports_the_user_s_modules(tmp_path, monkeypatch):
    cfg = own_data(tmp_path, monkeypatch, "own_of_verification")
    weights = tmp_path / "model.pth"
    weights.write_bytes(b"weights")
    record = {
        "config": cfg.dump(),
        "checkpoint": {"path": str(weights), "sha256": file_sha256(str(weights))},
        "evaluation": {"own_of_verification": {"files": {"adversarials": "adversarials"}}},
    }
    (tmp_path / "robustness.json").write_text(json.dumps(record))
    found, _ = recorded_config(tmp_path)
    assert "own_of_verification" in sys.modules and found.MODEL.PART_CLASSIFIER.NUM_CLASSES == 3


def test_nothing_else_prepares_a_config():
    """What `load_config` does is written once: no tool and no part of the engine forgets a step."""
    steps = re.compile(r"\b(import_modules|register_from_config|register_builtin)\(")
    users = {
        path.relative_to(ROOT).as_posix()
        for folder in ("part_robust", "tools", "datasets")
        for path in (ROOT / folder).rglob("*.py")
        if steps.search(path.read_text())
    }
    definitions = {"part_robust/data/builtin.py", "part_robust/data/register.py", "part_robust/run_config.py"}
    assert users == definitions | {"part_robust/__init__.py"}


def test_model_zoo_has_detectron2_s_functions():
    for name in detectron2_zoo.__all__:
        theirs, ours = (inspect.signature(getattr(zoo, name)).parameters for zoo in (detectron2_zoo, model_zoo))
        assert list(ours) == list(theirs), name
        assert [each.default for each in ours.values()] == [each.default for each in theirs.values()], name


def test_model_zoo(tmp_path):
    name = "quick_schedules/resnet50_instant_test.yaml"
    assert name in model_zoo.list_configs()
    assert Path(model_zoo.get_config_file(name)).read_text() == (ROOT / "configs" / name).read_text()
    adversarial = name.replace(".yaml", "_adv.yaml")  # has no file of its own
    by_detectron2 = default_cfg()
    by_detectron2.merge_from_file(model_zoo.get_config_file(adversarial))
    assert by_detectron2 == get_part_robust_cfg(adversarial) and adversarial in model_zoo.list_configs()
    with pytest.raises(FileNotFoundError, match=r"resnet51.yaml does not exist.*paco/resnet50.yaml"):
        model_zoo.get_config("paco/resnet51.yaml")
    for trained in (lambda: model_zoo.get(name, trained=True), lambda: model_zoo.get_checkpoint_url(name)):
        with pytest.raises(RuntimeError, match="No trained weights.*are published. Train them: part-robust train"):
            trained()
    make_part_shapes(tmp_path / "part_shapes", {"train": 8, "val": 1, "test": 1}, image_size=32)
    with builtin_below(tmp_path):
        model = model_zoo.get(name, device="cpu")
    assert isinstance(model, PartClassifier) and model.training and model.device.type == "cpu"
    assert model.head.classifier.out_features == 10
