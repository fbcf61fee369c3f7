"""The command lines as a user calls them: a run, its evaluation, its pictures, and mistakes answered by a sentence."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from part_robust.data.part_shapes import make_part_shapes
from tests.commands import ROOT, call, succeeded
from tests.data.builtin_names import builtin_below
from tests.toy import TINY

QUICK = str(ROOT / "configs" / "quick_schedules" / "deeplab_two_headed_instant_test_adv.yaml")


@pytest.fixture(scope="module", autouse=True)
def datasets(tmp_path_factory) -> Iterator[Path]:
    """Folder of the built-in data sets, of which PartShapes is drawn."""
    folder = tmp_path_factory.mktemp("datasets")
    make_part_shapes(folder / "part_shapes", {"train": 30, "val": 10, "test": 10}, image_size=32)
    with builtin_below(folder):
        yield folder


@pytest.fixture(scope="module")
def run(datasets, tmp_path_factory) -> Path:
    """Folder of a finished run of four iterations in two processes, which are started and import all on their own."""
    folder = tmp_path_factory.mktemp("run")
    opts = [*TINY, "SOLVER.MAX_ITER", 4, "TEST.EVAL_PERIOD", 2, "INPUT.TEST_RESIZE", 32]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(datasets))
        patch.setenv("OMP_NUM_THREADS", "1")
        succeeded(call("train_net", "--config-file", QUICK, "--num-gpus", 2, *opts, "OUTPUT_DIR", folder))
    return folder


def test_files_of_a_run(run):
    names = {path.name for path in run.iterdir()}
    assert names >= {"config.yaml", "log.txt", "metrics.json", "last_checkpoint", "model_final.pth", "model_best.pth"}
    metrics = [json.loads(line) for line in (run / "metrics.json").read_text().splitlines()]
    assert any("classification_fgsm/accuracy" in line for line in metrics)


def test_evaluation_in_one_process_is_that_of_the_run_in_two(run, tmp_path):
    opts = ["MODEL.WEIGHTS", run / "model_final.pth", "OUTPUT_DIR", tmp_path]
    opts += ["DATASETS.TEST", "('part_robust_part_shapes_val',)"]
    succeeded(call("train_net", "--config-file", run / "config.yaml", "--eval-only", *opts))
    assert "| part_robust_part_shapes_val | fgsm (linf 8/255)" in (tmp_path / "log.txt").read_text()
    tasks = json.loads((tmp_path / "robustness.json").read_text())["results"]["part_robust_part_shapes_val"]
    assert tasks.keys() >= {"classification", "classification_fgsm", "part_seg", "part_seg_fgsm", "part_box"}
    assert tasks["classification"]["num_images"] == 10
    two = json.loads((run / "metrics.json").read_text().splitlines()[-1])
    for task, metrics in tasks.items():
        for name, value in metrics.items():
            assert two[f"{task}/{name}"] == pytest.approx(value, abs=1e-4), (task, name)


def test_resume(run):
    arguments = ["--config-file", run / "config.yaml", "--resume", "SOLVER.MAX_ITER", 6, "TEST.EVAL_PERIOD", 0]
    text = succeeded(call("train_net", *arguments))
    assert "Starting training from iteration 4" in text
    metrics = [json.loads(line) for line in (run / "metrics.json").read_text().splitlines()]
    assert [line["iteration"] for line in metrics if "total_loss" in line] == [3, 5], "once more, not from the start"


def test_missing_paco_says_what_and_how(tmp_path):
    config = "paco/deeplab_two_headed.yaml"
    with builtin_below(tmp_path):
        done = call("train_net", "--config-file", config, "MODEL.DEVICE", "cpu", "OUTPUT_DIR", tmp_path)
    assert done.returncode == 1
    assert str(tmp_path / "paco" / "annotations" / "train.json") in done.stderr
    assert "part-robust prepare-paco" in done.stderr
    assert "Traceback" not in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["MODEL.PART_CLASSIFIER.HED", "x"], ["MODEL.PART_CLASSIFIER.HED"]),
        (["ATTACK.EVAL_DURING_TRAINING", "('pgd7',)"], ["pgd7", "pgd20"]),
        (["MODEL.WEIGHTS", "nothing.pth"], ["nothing.pth", "MODEL.WEIGHTS ''"]),
        (["--audit"], ["--audit", "--eval-only"]),
        (["--audit", "--eval-only", "ATTACK.EVAL", "()"], ["--audit", "TEST.TIER"]),
        (["--backend=autoattack"], ["--backend", "--eval-only"]),
        (["--backend=autoattack", "--eval-only", "ATTACK.EVAL", "()"], ["--backend autoattack", "TEST.TIER"]),
        (["--backend=theirs", "--eval-only"], ["TEST.BACKEND must be own or autoattack", "theirs"]),
        (["SOLVER.MAX_ITER", "2", "--eval-only"], ["--eval-only", "before the KEY VALUE"]),
    ],
)
def test_mistakes_are_answered_by_a_sentence(arguments, words, tmp_path):
    flags = [word for word in arguments if word.startswith("--") and arguments[0].startswith("--")]
    opts = ["OUTPUT_DIR", tmp_path, *arguments[len(flags) :]]
    done = call("train_net", "--config-file", QUICK, *flags, *opts)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr.splitlines()[-1]


def test_broken_json_is_named_with_its_place(tmp_path):
    make_part_shapes(tmp_path / "part_shapes", {"train": 2, "val": 1, "test": 1}, image_size=32)
    path = tmp_path / "part_shapes" / "annotations" / "train.json"
    data = json.loads(path.read_text())
    data["images"][1]["class_id"] = 99
    path.write_text(json.dumps(data))
    with builtin_below(tmp_path):
        done = call("train_net", "--config-file", QUICK, "OUTPUT_DIR", tmp_path / "out")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert str(path) in done.stderr and "images[1]" in done.stderr and "class_id 99" in done.stderr


@pytest.mark.parametrize("source", ["annotation", "dataloader"])
def test_visualize_data(source, tmp_path):
    config = "part_shapes/resnet50.yaml"
    output = tmp_path / "data.jpg"
    arguments = ["--config-file", config, "--source", source, "--count", 3, "--output", output]
    succeeded(call("visualize_data", *arguments))
    with Image.open(output) as picture:
        assert min(picture.size) > 100
        assert len(picture.convert("RGB").resize((32, 32)).getcolors(1024)) > 50, "a blank picture"


def test_visualize_attack_of_no_trained_model(run, tmp_path):
    done = call(
        "visualize_attack", "--config-file", run / "config.yaml", "--attack", "fgsm", "--output", tmp_path / "x.png"
    )
    assert done.returncode == 1 and "MODEL.WEIGHTS must be the checkpoint of a trained model" in done.stderr


def test_visualize_attack(run, tmp_path):
    output = tmp_path / "attack.png"
    arguments = ["--config-file", run / "config.yaml", "--attack", "fgsm", "--count", 2, "--output", output]
    succeeded(call("visualize_attack", *arguments, "MODEL.WEIGHTS", run / "model_final.pth"))
    with Image.open(output) as picture:
        assert picture.size[0] > picture.size[1] * 0.5
        assert len(picture.convert("RGB").resize((32, 32)).getcolors(1024)) > 50, "a blank picture"
