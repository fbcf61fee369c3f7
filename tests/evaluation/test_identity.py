"""Which config keys an evaluation's journal belongs to."""

from __future__ import annotations

import pytest
import yaml
from torch import nn

from part_robust.config import default_cfg
from part_robust.evaluation import identity
from part_robust.evaluation.identity import LATER_KEYS, evaluation_identity
from tests.evaluation.tier_fixture import make_plan


def config_hash(cfg) -> str:
    return evaluation_identity(cfg, make_plan(), nn.Linear(2, 2), "", "MODEL.WEIGHTS", [{"image_id": 1}])["config"]


@pytest.mark.parametrize("name", [f"{node}.{key}" for node, keys in LATER_KEYS.items() for key in keys])
def test_a_later_key_counts_only_where_it_is_set(name, monkeypatch):
    """So that a journal of a version without the key is continued."""
    hashed = []
    monkeypatch.setattr(identity, "_sha256", lambda value: hashed.append(value) or str(value))
    node, key = name.split(".")
    cfg = default_cfg()
    before = config_hash(cfg)
    assert key not in yaml.safe_load(hashed[0][node])
    value = cfg[node][key]
    if key == "EXTERNAL":
        value.KIND = "torchscript"
    else:
        cfg[node][key] = {str: "other", float: 0.5, tuple: (1, 2)}[type(value)]
    assert config_hash(cfg) != before
