"""Config files that are none, or that would run code: one sentence, and nothing happens."""

from __future__ import annotations

import pytest

from part_robust.config import get_part_robust_cfg
from part_robust.utils.errors import UserError


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", "must be a mapping of keys to values, got an empty file"),
        (b"- 1\n- 2\n", "must be a mapping of keys to values, got a list"),
        (b"SEED: [1\nSOLVER: 2", r"must be valid yaml, got an error in line 2, column \d+"),
        (b"SEED: \xff\xfe", "must be valid yaml"),
        (b"OUTPUT_DIR: !!python/object/apply:os.system ['touch MARK']", "plain values, got a tag in line 1.*run code"),
        (b"OUTPUT_DIR: !!python/name:os.system", "plain values, got a tag in line 1"),
        (b"_BASE_: https://example.org/base.yaml", r"_BASE_ must be a file .* got 'https://example\.org/base\.yaml'"),
        (b"_BASE_: [ftp://example.org/a.yaml]", "_BASE_ must be a file"),
        (b"_BASE_: config.yaml", "_BASE_ must be another file"),
        (b"SEED: 2026-01-01", "SEED must be a whole number"),
        (b"SOLVER: 3", "SOLVER must be a group of keys, got 3"),
        (b"SEED: {A: 1}", "SEED must be a whole number up to 4294967295, got"),
    ],
)
def test_one_sentence(text, words, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_bytes(text.replace(b"MARK", str(tmp_path / "mark").encode()))
    with pytest.raises(UserError, match=words) as error:
        get_part_robust_cfg(path)
    assert len(str(error.value).splitlines()) == 1
    assert not (tmp_path / "mark").exists(), "code of the config has run"
