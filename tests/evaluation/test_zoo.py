"""The model zoo from records: what is in a row, what is left out, and what is not believed."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest

from part_robust.cli.model_zoo import main
from part_robust.config import get_part_robust_cfg
from part_robust.evaluation.checks import failed
from part_robust.evaluation.report import write_zoo
from part_robust.utils.files import write_json
from tests.evaluation import record_fixture as fixture

ROOT = Path(__file__).resolve().parents[2]


def write(folder: Path, record: dict, **changes) -> Path:
    path = folder / "robustness.json"
    write_json(path, {**record, "name": folder.name, **changes})
    return path


def records(tmp_path: Path) -> list[Path]:
    sha = {"path": "output/part_shapes/x/model_best.pth", "sha256": "0123456789abcdef" * 4}
    leaf = {
        "config": "OUTPUT_DIR: ./output/part_shapes/deeplab_two_headed_adv\n",
        "parameters": 28_600_000,
        "pretraining": "ImageNet",
    }
    strong, masked = copy.deepcopy(fixture.record()), copy.deepcopy(fixture.record())
    strong["evaluation"][fixture.DATASET]["tiers"]["standard"]["robust"] = fixture.score(600)
    masked["evaluation"][fixture.DATASET]["checks"].append(failed("C6", "the gradient is cut").describe())
    return [
        write(tmp_path / "weak", fixture.record(), config="OUTPUT_DIR: ./elsewhere\n"),
        write(tmp_path / "masked", masked),
        write(tmp_path / "strong", strong, checkpoint=sha, **leaf),
        write(tmp_path / "old", fixture.first_schema()),
        write(tmp_path / "parts_only", {"results": {"x": {"part_seg": {"pixel_accuracy": 80.0, "num_images": 5}}}}),
    ]


def test_rows(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    page = write_zoo(records(tmp_path), tmp_path / "docs" / "zoo.md").read_text()
    heads, *rows = [
        [cell.strip().replace("\\_", "_") for cell in line.strip("|").split("|")]
        for line in page.splitlines()
        if line.startswith("| ")
    ]
    table = {row[0]: dict(zip(heads, row, strict=True)) for row in rows}
    assert list(table)[-1] == "masked" and list(table).index("strong") < list(table).index("weak")
    strong, weak, masked, old = (table[name] for name in ("strong", "weak", "masked", "old"))
    assert (strong["robust %"], strong["under"]) == (f"{100 * fixture.THESIS / fixture.IMAGES:.1f}", "thesis")
    assert (weak["robust %"], weak["under"]) == (f"{100 * fixture.STANDARD / fixture.IMAGES:.1f}", "standard")
    assert strong["clean %"] == f"{100 * fixture.CLEAN / fixture.IMAGES:.1f}"
    assert strong["config"] == "configs/part_shapes/deeplab_two_headed_adv.yaml", "it exists in the tree"
    assert weak["config"] == "config.yaml", "no such leaf"
    assert strong["weights, sha256"] == "0123456789ab" and strong["parameters"] == "28,600,000"
    assert (strong["pre-training"], weak["pre-training"]) == ("ImageNet", "-")
    assert strong["threat model"] == "linf 8/255" and "pass" in strong["checks"]
    assert masked["robust %"] == "-" and "unreliable: C6 the gradient is cut" in masked["checks"]
    assert old["checks"] == "no checks ran"
    assert "not here: parts\\_only" in page
    assert str(tmp_path) not in page, "no path of this machine"
    command = "--config-file config.yaml --eval-only MODEL.WEIGHTS output/part_shapes/x/model_best.pth"
    assert page.count("--eval-only") == 4 and command in page
    standard = next(
        row for row in fixture.record()["evaluation"][fixture.DATASET]["attack_matrix"] if row["attack"] == "standard"
    )
    assert weak["pixels, attacked %"] == f"{standard['pixel_accuracy']:.1f}" and masked["pixels, attacked %"] == "-"


def test_config_of_a_suite(tmp_path, monkeypatch):
    """Named after the leaf that it was made from, with what had been changed; and the commands, in their order."""
    monkeypatch.chdir(ROOT)
    leaf = "configs/part_shapes/resnet50.yaml"
    cfg = get_part_robust_cfg(leaf, ["SOLVER.EPOCHS", 6, "OUTPUT_DIR", "output/part_shapes_small/resnet50"])
    path = write(tmp_path / "resnet50", fixture.record(), config=cfg.dump())
    page = write_zoo([path], tmp_path / "zoo.md", ["first --suite x", "second"]).read_text().replace("\\_", "_")
    assert f"| {leaf} SOLVER.EPOCHS 6.0 |" in page
    assert page.index("were made") < page.index("first --suite x\nsecond") < page.index("| resnet50 |")


def test_command_line(tmp_path, capsys):
    records(tmp_path)
    main([str(tmp_path), "--output", str(tmp_path / "zoo.md")])
    assert capsys.readouterr().out.strip() == str(tmp_path / "zoo.md")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit) as stop:
        main([str(tmp_path / "empty"), "--output", str(tmp_path / "zoo.md")])
    # A sentence, with which Python exits by code 1.
    assert "no robustness.json" in stop.value.code and len(stop.value.code.splitlines()) == 1


def test_a_broken_record_is_named(tmp_path):
    (tmp_path / "robustness.json").write_text("{")
    with pytest.raises(ValueError, match="robustness.json is not valid json"):
        write_zoo([tmp_path / "robustness.json"], tmp_path / "zoo.md")
    assert not (tmp_path / "zoo.md").exists()
