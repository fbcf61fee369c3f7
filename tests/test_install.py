"""The installer's decisions: where detectron2 comes from, what is kept, and what is said when it cannot be had."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PINNED = "detectron2 @ git+https://github.com/facebookresearch/detectron2.git@02b5c4e295e990042a714712c21dc79b731e8833"


@pytest.fixture
def install(monkeypatch):
    monkeypatch.delenv("DETECTRON2", raising=False)
    spec = importlib.util.spec_from_file_location("install", ROOT / "tools" / "install.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_versions_stand_in_one_place(install):
    sections = install.read_requirements()
    assert list(sections) == ["build", "torch", "detectron2", "runtime", "indirect", "dev"]
    assert len(sections["torch"]) == 2 and sections["detectron2"] == [PINNED]
    for line in sections["torch"] + sections["runtime"] + sections["indirect"] + sections["dev"]:
        assert re.match(r"[\w-]+==[\w.]+(; python_version .+)?$", line), "exact tested versions"


@pytest.mark.parametrize(
    ("given", "asked"),
    [
        ("", PINNED),
        ("https://example.org/detectron2.git", "git+https://example.org/detectron2.git"),
        ("git+ssh://example.org/detectron2.git@abc", "git+ssh://example.org/detectron2.git@abc"),
        ("https://example.org/detectron2-0.6-cp311.whl", "https://example.org/detectron2-0.6-cp311.whl"),
    ],
)
def test_source_of_detectron2(install, monkeypatch, given, asked):
    monkeypatch.setenv("DETECTRON2", given)
    assert install.detectron2_source(PINNED) == asked


def test_folder_of_detectron2(install, monkeypatch, tmp_path):
    monkeypatch.setenv("DETECTRON2", str(tmp_path))
    assert install.detectron2_source(PINNED) == str(tmp_path)
    monkeypatch.setenv("DETECTRON2", str(tmp_path / "nowhere"))
    with pytest.raises(SystemExit, match="nowhere does not exist"):
        install.detectron2_source(PINNED)


def test_an_environment_keeps_its_detectron2(install, monkeypatch):
    # The tests themselves run in such an environment.
    monkeypatch.setattr(install, "pip_install", lambda *_: pytest.fail("nothing is to be installed"))
    install.install_detectron2(sys.executable, PINNED)


def test_says_what_was_tried_and_both_ways_out(install, monkeypatch):
    monkeypatch.setattr(install, "has_detectron2", lambda _: False)
    monkeypatch.setattr(install, "pip_install", lambda *_: 1)
    with pytest.raises(SystemExit) as stop:
        install.install_detectron2("python", PINNED)
    message = str(stop.value)
    assert PINNED in message and "DETECTRON2=<folder, wheel or URL> make install" in message
    assert "make install VENV=<its folder>" in message
