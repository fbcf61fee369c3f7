"""The pieces of docs/extending.md run as they stand, in a model that trains, is attacked and evaluated; the config
of docs/backbones.md builds.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model

from part_robust.attacks import ATTACK_REGISTRY, OBJECTIVES, attack_mode, build_attack
from part_robust.config import attack_spec, find_config, get_part_robust_cfg
from part_robust.engine import train
from part_robust.engine.trainer import PartTrainer
from part_robust.evaluation.plan import build_tiers
from part_robust.modeling import CLASS_HEAD_REGISTRY, PART_SEGMENTER_REGISTRY
from part_robust.run_config import import_modules
from tests.evaluation.check_models import Honest, make_images
from tests.toy import ADVERSARIAL, run_cfg

DOCS = Path(__file__).resolve().parent.parent / "docs"
CONFIGS = DOCS.parent / "configs"
TEXT = (DOCS / "extending.md").read_text()
ATTACKS = (DOCS / "attacks.md").read_text()
PIECES = re.findall(r"```python\n(.+?)```", TEXT, re.DOTALL)
SETTINGS = re.findall(r"```yaml\n(.+?)```", TEXT, re.DOTALL)
REGISTRIES = (CLASS_HEAD_REGISTRY, PART_SEGMENTER_REGISTRY, ATTACK_REGISTRY)


@pytest.fixture
def my_parts(tmp_path, monkeypatch):
    """The page's pieces as a user's module, taken out of the registries afterwards."""
    before = [dict(registry._obj_map) for registry in REGISTRIES]
    objectives = dict(OBJECTIVES)
    (tmp_path / "my_parts.py").write_text("\n\n".join(PIECES))
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "my_parts"
    sys.modules.pop("my_parts", None)
    for registry, entries in zip(REGISTRIES, before, strict=True):
        registry._obj_map.clear()
        registry._obj_map.update(entries)
    OBJECTIVES.clear()
    OBJECTIVES.update(objectives)


def test_they_train_and_are_attacked(my_parts, toy_data, tmp_path):
    import_modules(get_part_robust_cfg(None, ["IMPORTS", [my_parts]]))
    (names,) = re.findall(r"PART_CLASSIFIER: \{SEGMENTER: \"(\w+)\", HEAD: \"(\w+)\"\}", TEXT)
    opts = ["MODEL.PART_CLASSIFIER.SEGMENTER", names[0], "MODEL.PART_CLASSIFIER.HEAD", names[1]]
    cfg = run_cfg(tmp_path, *ADVERSARIAL, *opts, "SOLVER.MAX_ITER", 2, "TEST.EVAL_PERIOD", 2, model="deeplab_segmenter")
    cfg = with_settings_of_the_page(cfg, tmp_path)
    cfg.ATTACK.EVAL_DURING_TRAINING = ["pgd20", "momentum"]
    results = train(cfg)
    tasks = {f"{task}{suffix}" for task in ("classification", "part_seg") for suffix in ("", "_pgd20", "_momentum")}
    assert tasks <= set(results)
    model = PartTrainer.build_model(cfg)
    assert (type(model.segmenter).__name__, type(model.head).__name__) == names


def with_settings_of_the_page(cfg, folder):
    """What the page names attack and tier by."""
    (folder / "page.yaml").write_text(SETTINGS[1])
    cfg = cfg.clone()
    cfg.defrost()
    cfg.merge_from_file(str(folder / "page.yaml"))
    return cfg


@pytest.mark.parametrize("objective", ["cross_entropy", "margin", "probability"])
def test_the_attack_is_one(my_parts, tmp_path, objective):
    cfg = get_part_robust_cfg(None, ["IMPORTS", [my_parts], "MODEL.PART_CLASSIFIER.HEAD", "LinearHead"])
    import_modules(cfg)
    cfg = with_settings_of_the_page(cfg, tmp_path)
    cfg.TEST.TIER = "mine"
    (tier,) = build_tiers(cfg)
    assert list(tier.attacks) == ["apgd_ce", "momentum"] and type(tier.attacks["momentum"]).__name__ == "MomentumPGD"
    assert build_attack({"NAME": "DecayingMomentumPGD", "DECAY": 0.5}).decay == 0.5
    with attack_mode(Honest()) as view, torch.no_grad():
        images = make_images(12)
        labels = view(images).argmax(dim=1)
        found = {}
        for early in (True, False):
            spec = attack_spec(cfg, "momentum")
            attack = build_attack(spec, EARLY_STOP=early, EPS=1.0, STEP_SIZE=0.3, OBJECTIVE=objective, COMPACT_EVERY=2)
            with torch.enable_grad():
                found[early] = attack(view, images, labels, keys=torch.arange(12))  # verifies the threat model
        assert 0 < found[False].success.sum() < 12
        assert torch.equal(found[True].success, found[False].success) and found[True].forwards < found[False].forwards
        assert torch.equal(view(found[False].images).argmax(dim=1) != labels, found[False].success)


def test_a_module_that_is_not_there_is_named():
    with pytest.raises(ImportError, match=r"IMPORTS.*no_such_parts.*PYTHONPATH"):
        import_modules(get_part_robust_cfg(None, ["IMPORTS", ["no_such_parts"]]))


BACKBONES = (DOCS / "backbones.md").read_text()


@pytest.mark.parametrize(("index", "channels"), [(0, [96, 768]), (1, [24, 320])])
def test_backbone_config(tmp_path, index, channels):
    """The page's configs build, at the sizes of a data set."""
    pytest.importorskip("timm")
    texts = re.findall(r"```yaml\n(_BASE_.+?)```", BACKBONES, re.DOTALL)
    assert len(texts) == 2
    path = tmp_path / "mine.yaml"
    path.write_text(texts[index])
    counts = ["MODEL.PART_CLASSIFIER.NUM_CLASSES", 11, "MODEL.PART_CLASSIFIER.NUM_PARTS", 40]
    # Nothing is downloaded here.
    cfg = get_part_robust_cfg(path, [*counts, "MODEL.DEVICE", "meta", "MODEL.TIMM.PRETRAINED", False])
    with torch.device("meta"):
        shapes = build_model(cfg).backbone.output_shape()
    assert [shapes[name].channels for name in ("res2", "res5")] == channels


def test_backbone_configs_exist():
    named = re.findall(r"configs/[\w/]+\.yaml", BACKBONES)
    assert len(named) >= 3 and all(find_config(name) for name in named)


def test_every_attack_objective_entry_and_key_is_described():
    tables = "\n".join(line for line in ATTACKS.splitlines() if line.startswith("|"))
    tables += ATTACKS[ATTACKS.index("All share") : ATTACKS.index("## Objectives")]
    words = set(re.findall(r"\w+", tables))
    cfg = get_part_robust_cfg()
    own = {name for name in ATTACK_REGISTRY._obj_map if ATTACK_REGISTRY.get(name).__module__.startswith("part_robust")}
    assert own <= words
    assert set(OBJECTIVES) <= words
    assert set(cfg.ATTACK.SPECS) <= words
    assert set(attack_spec(cfg, "pgd20")) - {"NAME"} <= words
    which = ATTACKS[ATTACKS.index("## Which one") : ATTACKS.index("All share")]
    defaults = re.findall(r'`([A-Z_]+) (\(\)|"\w+"|[\w.]+)`', which)
    assert len(defaults) > 12
    for key, value in defaults:
        assert str(cfg.ATTACK.TRAIN[key]) == value.strip('"'), key


def test_pieces_of_the_attack_page_run(tmp_path):
    (settings,) = re.findall(r"```yaml\n(.+?)```", ATTACKS, re.DOTALL)
    (tmp_path / "page.yaml").write_text(settings)
    cfg = get_part_robust_cfg(tmp_path / "page.yaml")
    attack = build_attack(attack_spec(cfg, "pgd40_l2"))
    assert attack.steps == 40 and attack.threat_model.norm == "l2"
    (piece,) = re.findall(r"```python\n(.+?)```", ATTACKS, re.DOTALL)
    images = make_images(4)
    names = {"model": Honest(), "images": images, "labels": torch.tensor([0, 1, 2, 3])}
    exec(piece, names)
    assert names["result"].success.all() and names["result"].forwards > 0
