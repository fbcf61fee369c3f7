"""The wheel, used from an empty folder: its configs, its command, and what it declares."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_bytes
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

import part_robust
from part_robust.cli import COMMANDS, main
from part_robust.model_zoo import list_configs

ROOT = Path(__file__).resolve().parent.parent
SOURCES = [
    "part_robust",
    "configs",
    "setup.py",
    "pyproject.toml",
    "requirements.txt",
    "README.md",
    "CHANGELOG.md",
    "CITATION.cff",
    "LICENSE",
    "MANIFEST.in",
]
# Imported where it is needed, by the extra that brings it.
OPTIONAL = {"timm": "timm", "pyautoattack": "aa", "onnxruntime": "onnx", "imagecorruptions": "corruptions"}
OPTIONAL |= {"safetensors": "timm"}  # timm requires it
# No package registry has detectron2 (README.md); torch brings typing_extensions, and triton where it uses it.
UNDECLARED = {"detectron2", "triton", "typing_extensions"}
# Every config loads, and the command finds one by its name: it goes as far as the data, which are not there.
SCRIPT = """
import part_robust
from part_robust.cli import main
print(part_robust.__file__)
names = part_robust.model_zoo.list_configs()
for name in names:
    part_robust.get_part_robust_cfg(name)
print(len(names))
main(["train", "--config-file", "paco/mask_dino_simple.yaml", "MODEL.DEVICE", "cpu"])
"""

# The first run of somebody who has nothing but the wheel.
FIRST_RUN = """
from part_robust.cli import main
config, output = "quick_schedules/resnet50_instant_test.yaml", "output/quick_schedules/resnet50_instant_test"
short = ["SOLVER.MAX_ITER", "2", "INPUT.SIZE", "32", "INPUT.TEST_RESIZE", "32", "DATALOADER.NUM_WORKERS", "0"]
main(["make-part-shapes", "--train", "8", "--val", "4", "--test", "4", "--size", "32"])
main(["train", "--config-file", config, *short])
main(["train", "--config-file", config, "--eval-only", *short, "MODEL.WEIGHTS", f"{output}/model_final.pth"])
main(["report", output])
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from the sdist, and that from a copy: building leaves files behind, and would take in what is left."""
    source, output = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    build = f"from setuptools.build_meta import build_sdist; build_sdist({str(output)!r})"
    done = subprocess.run([sys.executable, "-c", build], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (archive,) = output.glob("*.tar.gz")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check"]
    offline = ["--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run([*pip, *offline, "-w", output, archive], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (path,) = output.glob("*.whl")
    return path


def read(wheel: Path, name: str) -> bytes:
    with zipfile.ZipFile(wheel) as file:
        (found,) = (each for each in file.namelist() if each.endswith(f".dist-info/{name}"))
        return file.read(found)


def test_files_and_metadata(wheel):
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
    configs = {path.relative_to(ROOT / "configs") for path in (ROOT / "configs").rglob("*.yaml")}
    assert {f"part_robust/configs/{name}" for name in configs} <= names
    assert {"part_robust/py.typed", "part_robust/cli/__init__.py"} <= names
    templates = (ROOT / "part_robust" / "evaluation" / "report" / "templates").iterdir()
    assert {path.relative_to(ROOT).as_posix() for path in templates} <= names
    assert {name.split("/")[0].split("-")[0] for name in names} == {"part_robust"}
    assert "part-robust = part_robust.cli:main" in read(wheel, "entry_points.txt").decode().splitlines()
    metadata = message_from_bytes(read(wheel, "METADATA"))
    assert metadata["Version"] == part_robust.__version__ and metadata["Author"] == "The part_robust authors"
    assert metadata["License"] == "Apache-2.0" and metadata.get_all("Project-URL") and metadata.get_all("Classifier")
    assert metadata["Requires-Python"] == ">=3.10,<3.14"


def test_the_sdist_holds_what_citing_and_building_need(wheel):
    (archive,) = wheel.parent.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
    assert {"CHANGELOG.md", "CITATION.cff", "LICENSE", "README.md", "requirements.txt", "setup.py"} <= names


@pytest.fixture(scope="module")
def site(wheel, tmp_path_factory) -> Path:
    """The folder that the wheel is installed in."""
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as file:
        file.extractall(folder)
    return folder


def run_in(folder: Path, site: Path, script: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1", "DETECTRON2_DATASETS": "data"}
    return subprocess.run([sys.executable, "-c", script], cwd=folder, env=environment, capture_output=True, text=True)


def test_train_evaluate_and_report_from_an_empty_folder(site, tmp_path):
    done = run_in(tmp_path, site, FIRST_RUN)
    assert done.returncode == 0, done.stderr[-3000:]
    output = Path("output/quick_schedules/resnet50_instant_test")
    assert done.stdout.splitlines()[-2:] == [str(output / "report.md"), str(output / "report.html")]
    names = {"config.yaml", "log.txt", "model_best.pth", "robustness.json", "report.md", "report.html"}
    assert names <= {path.name for path in (tmp_path / output).iterdir()}
    assert len(done.stdout.splitlines()) < 150, done.stdout


def test_from_an_empty_folder(site, tmp_path):
    done = run_in(tmp_path, site, SCRIPT)
    package = str(site / "part_robust" / "__init__.py")
    assert done.stdout.splitlines() == [package, str(len(list_configs()))], done.stderr
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "data/paco/annotations/train.json does not exist" in done.stderr.splitlines()[-1]
    assert "part-robust prepare-paco --output data/paco" in done.stderr.splitlines()[-1]
    assert not list(tmp_path.iterdir()), "nothing is written before the data are there"


def test_everything_imported_is_declared_and_nothing_else(wheel):
    needed, optional = set(), set()
    for line in message_from_bytes(read(wheel, "METADATA")).get_all("Requires-Dist"):
        name = re.match(r"[\w-]+", line)[0].lower()
        extra = re.search(r'extra == "(\w+)"', line)
        (optional if extra else needed).add((name, extra[1]) if extra else name)
    imported = third_party_imports()
    distributions = packages_distributions()
    found = imported - OPTIONAL.keys() - UNDECLARED
    # Python 3.10 knows only distributions that list their modules.
    assert {distributions.get(name, [name])[0].lower() for name in found} == needed
    extras = {extra for _, extra in optional}
    assert OPTIONAL.keys() <= imported and extras == {*OPTIONAL.values(), "pretrained", "test"}


def third_party_imports() -> set[str]:
    """Top-level names that any module of the package imports anywhere."""
    found = set()
    for path in (ROOT / "part_robust").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                found.add(node.module.split(".")[0])
    return found - sys.stdlib_module_names - {"part_robust"}


def test_commands(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["part-robust"])
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0 and all(f"  {name} " in text for name in COMMANDS)
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0 and capsys.readouterr().out.strip() == part_robust.__version__
    for words in ([], ["trian"]):
        with pytest.raises(SystemExit) as stop:
            main(words)
        assert stop.value.code == 2
    assert "invalid choice: 'trian'" in capsys.readouterr().err


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command(name, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["part-robust"])
    with pytest.raises(SystemExit) as stop:
        main([name, "--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0 and f"usage: part-robust {name} " in text
