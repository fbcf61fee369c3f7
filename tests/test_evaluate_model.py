"""`part-robust evaluate-model`: a classifier from elsewhere in the evaluation of part models, as a shell sees it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.models import get_model

from part_robust.cli import evaluate_model
from part_robust.engine.export_graph import export_graph
from part_robust.utils.files import file_sha256
from tests.commands import call, succeeded
from tests.evaluation.record_fixture import comparable
from tests.external_models import FLAGS, SHORT, learn, save_torchscript, toy_images, trained, write_callables
from tests.processes import start_two
from tests.toy import CLASSES, SIZE, save_run


@pytest.fixture
def data(toy_data) -> list[str]:
    return ["--json", str(toy_data[0]), "--image-root", str(toy_data[1]), "--dataset", "toy_val"]


@pytest.fixture
def callables(tmp_path, monkeypatch):
    """Path of the module `external_callables`."""
    monkeypatch.syspath_prepend(str(tmp_path))
    yield write_callables(tmp_path)
    sys.modules.pop("external_callables", None)


@pytest.fixture(scope="module")
def evaluated(toy_data, tmp_path_factory) -> tuple[list[str], Path]:
    """Arguments of an evaluation of a TorchScript file, and its folder."""
    folder = tmp_path_factory.mktemp("torchscript")
    flags = ["--torchscript", save_torchscript(folder / "now.ts", trained()), *FLAGS]
    flags += ["--json", str(toy_data[0]), "--image-root", str(toy_data[1]), "--dataset", "toy_val"]
    opts = [*SHORT, "OUTPUT_DIR", str(folder / "out"), "TEST.SAVE_ADVERSARIALS", "npz", "TEST.EPS", "70"]
    succeeded(call("evaluate_model", *flags, *opts))
    return [*flags, *opts], folder / "out"


def read(folder: Path) -> dict:
    return json.loads((folder / "robustness.json").read_text())


def flags_of(folder: Path) -> dict[str, np.ndarray]:
    with np.load(folder / "flags_toy_val.npz") as file:
        return {name: file[name] for name in file.files}


def assert_same_flags(one: Path, two: Path) -> None:
    """Predictions and verdicts are equal, margins but for rounding."""
    found, expected = flags_of(one), flags_of(two)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        tolerance = 1e-3 if name.startswith("margin") else 0
        np.testing.assert_allclose(found[name], values, rtol=tolerance, atol=tolerance, err_msg=name)


def test_record_and_report(evaluated):
    arguments, folder = evaluated
    record = read(folder)
    assert record["clean_acc"] == 100.0 > record["reported"]
    assert record["architecture"] == "torchscript"
    assert record["checkpoint"] == {"path": arguments[1], "sha256": file_sha256(arguments[1])}
    assert record["parameters"] == sum(parameter.numel() for parameter in trained().parameters())
    preprocessing = record["preprocessing"]
    assert (preprocessing["size"], preprocessing["channels"], preprocessing["output"]) == (SIZE, "RGB", "logits")
    assert preprocessing["mean"] == [127.5] * 3 and preprocessing["std"] == [63.75] * 3
    assert "class i of the data set" in preprocessing["notes"][0]
    evaluation = record["evaluation"]["toy_val"]
    assert {check["id"]: check["status"] for check in evaluation["checks"]}["C6"] == "pass"
    assert evaluation["reportable"] and list(evaluation["tiers"]) == ["screen"]
    assert "torchscript" in (folder / "report.md").read_text()
    assert "(pixels - [127.5, 127.5, 127.5]) / [63.75, 63.75, 63.75]" in (folder / "log.txt").read_text()


def test_resume(evaluated):
    arguments, folder = evaluated
    before = comparable(folder)
    lost = sorted((folder / "journal_toy_val").glob("batch_*.npz"))[0]
    lost.unlink()
    text = succeeded(call("evaluate_model", *arguments[:2], "--resume", *arguments[2:]))
    assert "Continuing: " in text and lost.is_file()
    assert comparable(folder) == before
    other = [arg if arg != "0.25" else "0.3" for arg in arguments]
    done = call("evaluate_model", *other[:2], "--resume", *other[2:])
    assert done.returncode == 1 and "(config changed since)" in done.stderr


def test_verification_in_a_fresh_process(evaluated):
    _, folder = evaluated
    assert "toy_val screen: 12 images" in succeeded(call("verify_adversarials", folder))


def test_two_processes_write_the_record_of_one(evaluated, tmp_path):
    arguments, folder = evaluated
    arguments = [str(tmp_path) if arg == str(folder) else arg for arg in arguments]
    start_two(evaluate_model.run, (evaluate_model.parse_arguments(arguments),))
    assert read(tmp_path)["evaluation"]["toy_val"]["device"] == "2 x CPU"
    assert_same_flags(tmp_path, folder)
    assert read(tmp_path)["results"] == read(folder)["results"]


def test_random_weights_of_a_callable_are_those_of_the_first_process(callables, data, tmp_path):
    flags = ["--callable", "external_callables:random_weights", *data, *FLAGS, *SHORT, "TEST.TIERS.screen", "['fgsm']"]
    flags += ["TEST.CHECKS.IMAGES", "1", "DATALOADER.TEST_BATCH_SIZE", "6", "OUTPUT_DIR"]
    succeeded(call("evaluate_model", *flags, tmp_path / "one"))
    start_two(evaluate_model.run, (evaluate_model.parse_arguments([*flags, str(tmp_path / "two")]),))
    assert_same_flags(tmp_path / "two", tmp_path / "one")


def test_our_own_model_gets_the_verdicts_of_its_native_evaluation(data, tmp_path):
    """A ResNet in TorchScript, with the description beside the file and no further flag."""
    cfg, model = save_run(tmp_path / "run", "resnet")
    images, labels = toy_images()
    learn(model, model.class_logits, 127.5 + 63.75 * images, labels, steps=15)
    torch.save({"model": model.state_dict()}, cfg.MODEL.WEIGHTS)
    graph = export_graph(cfg, tmp_path / "exported", "torchscript")
    own = ["OUTPUT_DIR", tmp_path / "given", "TEST.TIERS.screen", "['apgd_ce', 'square']", "TEST.EPS", "12"]
    own += ["ATTACK.SPECS.square.STEPS", "10"]
    succeeded(call("evaluate_model", "--torchscript", graph.path, *data, *SHORT, *own))
    own[1] = tmp_path / "native"
    opts = [*SHORT, *own, "DATASETS.TEST", "('toy_val',)"]
    succeeded(call("train_net", "--eval-only", "--config-file", tmp_path / "run" / "config.yaml", *opts))
    assert_same_flags(tmp_path / "given", tmp_path / "native")
    evaluation = read(tmp_path / "native")["evaluation"]["toy_val"]
    assert 0 < evaluation["tiers"]["screen"]["robust"]["correct"] < evaluation["clean"]["correct"]
    text = succeeded(call("compare", tmp_path / "given", tmp_path / "native"))
    assert "right in A alone 0, in B alone 0" in text and "exact McNemar p = 1" in text
    assert read(tmp_path / "given")["preprocessing"]["class_indices"] == list(range(len(CLASSES)))


def test_a_library_states_its_preprocessing(data, tmp_path):
    """At a smaller size the crop is the same share of the image."""
    torch.manual_seed(0)
    weights = tmp_path / "now.pth"
    torch.save(get_model("shufflenet_v2_x0_5", weights=None, num_classes=3).state_dict(), weights)
    flags = ["--torchvision", "shufflenet_v2_x0_5", "--weights", weights, "--size", SIZE]
    opts = [*SHORT, "OUTPUT_DIR", tmp_path / "out", "TEST.NUM_IMAGES", "2", "TEST.CHECKS.IMAGES", "1"]
    text = succeeded(call("evaluate_model", *flags, *data, *opts))
    record = read(tmp_path / "out")
    assert record["architecture"] == "torchvision shufflenet_v2_x0_5"
    assert record["checkpoint"]["sha256"] == file_sha256(weights)
    assert record["preprocessing"]["resize"] == 37, "256 for 224"
    assert "short side to 37 pixels, the middle 32 x 32 is cut out" in text and "torchvision's Shuffle" in text


def test_a_callable_and_its_source(callables, data, tmp_path):
    """The hash is that of its module, and another source is another evaluation."""
    arguments = ["--callable", "external_callables:learned", *data, *FLAGS]
    opts = [*SHORT, "OUTPUT_DIR", tmp_path / "out"]
    succeeded(call("evaluate_model", *arguments, *opts))
    record = read(tmp_path / "out")
    assert record["architecture"] == "callable external_callables:learned"
    source = file_sha256(callables)
    assert record["checkpoint"] == {"path": str(callables), "sha256": source, "source_sha256": source}
    callables.write_text(callables.read_text() + "\nmore = 1\n")
    done = call("evaluate_model", *arguments, "--resume", *opts)
    assert done.returncode == 1 and "checkpoint, config changed since" in done.stderr


def test_the_config_that_is_written_evaluates_it_again(evaluated, tmp_path):
    _, folder = evaluated
    opts = ["--config-file", folder / "config.yaml", "OUTPUT_DIR", tmp_path]
    succeeded(call("train_net", "--eval-only", *opts, "TEST.TIER", "", "ATTACK.EVAL", "['fgsm']"))
    assert read(tmp_path)["results"]["toy_val"]["classification"]["accuracy"] == 100.0
    done = call("train_net", *opts, "DATASETS.TRAIN", "('toy_train',)")
    assert done.returncode == 1 and "MODEL.EXTERNAL.KIND must be '' for a training, got torchscript" in done.stderr
    done = call("export_model", *opts[:2], "--output", tmp_path / "exported")
    assert done.returncode == 1 and "MODEL.EXTERNAL.KIND must be '' for an export, got torchscript" in done.stderr


def test_without_a_gradient_only_black_boxes_attack(callables, data, tmp_path):
    arguments = ["--callable", "external_callables:no_gradient", *data, *FLAGS]
    opts = [*SHORT, "OUTPUT_DIR", tmp_path / "out", "ATTACK.SPECS.square.STEPS", "20", "TEST.EPS", "40"]
    done = call("evaluate_model", *arguments, *opts)
    assert done.returncode == 1 and "TEST.TIER must hold attacks without gradients alone, got apgd_ce" in done.stderr
    assert not list((tmp_path / "out").glob("journal*"))
    done = call("evaluate_model", *arguments, *opts, "TEST.TIER", "black_box", "TEST.EPS_CURVE", "(1,)")
    assert done.returncode == 1 and "TEST.EPS_CURVE must be ()" in done.stderr
    succeeded(call("evaluate_model", *arguments, *opts, "TEST.TIER", "black_box"))
    evaluation = read(tmp_path / "out")["evaluation"]["toy_val"]
    statuses = {check["id"]: check["status"] for check in evaluation["checks"]}
    assert not evaluation["reportable"] and statuses["C6"] == "fail"
    assert evaluation["tiers"]["black_box"]["robust"]["correct"] < evaluation["clean"]["correct"] == 12


def test_outputs_are_found_by_their_names(callables, data, tmp_path):
    """A model of five classes, three of which are the data set's in another order."""
    names = tmp_path / "names.txt"
    names.write_text("sign\nfish\nplain\nlamp\nbird\n")
    arguments = ["--callable", "external_callables:five", *data, *FLAGS]
    opts = [*SHORT, "OUTPUT_DIR", tmp_path / "out", "TEST.NUM_IMAGES", "2"]
    done = call("evaluate_model", *arguments, *opts)
    assert done.returncode == 1 and "got 5 outputs. Give --classes a file" in done.stderr
    succeeded(call("evaluate_model", *arguments, "--classes", names, *opts))
    preprocessing = read(tmp_path / "out")["preprocessing"]
    assert preprocessing["class_indices"] == [3, 2, 0] and "2 of the model's 5 outputs" in preprocessing["notes"][0]
    names.write_text("sign\nplain\nplain\nlamp\nlamp\n")
    opts[-3] = tmp_path / "unions"
    succeeded(call("evaluate_model", *arguments, "--classes", names, *opts))
    record = read(tmp_path / "unions")
    assert record["preprocessing"]["class_indices"] == [[3, 4], [1, 2], 0]
    (note,) = record["preprocessing"]["notes"]
    assert note.startswith("classes with several outputs: 2, up to 2") and "probability of their union" in note
    checks = {check["id"]: check["status"] for check in record["evaluation"]["toy_val"]["checks"]}
    assert checks["C6"] == "pass", "the gradient is that of the logits"
    opts = ["--config-file", tmp_path / "unions" / "config.yaml", "OUTPUT_DIR", tmp_path / "again"]
    succeeded(call("train_net", "--eval-only", *opts))
    assert_same_flags(tmp_path / "again", tmp_path / "unions")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--torchscript", "nothing.ts"], "--torchscript must be the file of a model, got nothing.ts, which does not"),
        (["--exported", "CHECKPOINT"], "must be a file of torch.export.save, got one of torch.save: give its weights"),
        (["--exported", "SCRIPT"], "must be a file of torch.export.save, got one of torch.jit.save: give it as --tor"),
        (["--torchscript", "x.ts", "--weights", "x.pth"], "--weights must be left out with --torchscript"),
        (["--torchvision", "resnet18"], "--weights must be the file of weights of --torchvision resnet18, got none"),
        (["--callable", "no_such_module:f"], "Is its folder in PYTHONPATH?"),
        (["--callable", "external_callables"], "--callable must be package.module:function"),
        (["--callable", "external_callables:probabilities"], "must return logits, got probabilities"),
        (["--callable", "external_callables:of_the_batch"], "must classify each image by itself"),
        (["--callable", "external_callables:broken"], "ZeroDivisionError: division by zero"),
        (["--callable", "external_callables:learned", "--size", "64", "--resize", "32"], "INPUT.TEST_RESIZE must be"),
        (["--callable", "external_callables:learned", "--size", "224x320"], "--size must be one number of pixels"),
        (["--callable", "external_callables:learned", "--std", "0"], "MODEL.PIXEL_STD must be"),
        (["--callable", "external_callables:learned", "--classes", "nothing.txt"], "nothing.txt"),
    ],
)
def test_a_mistake_is_one_sentence(flags, words, callables, data, tmp_path):
    files = {"CHECKPOINT": tmp_path / "weights.pth", "SCRIPT": tmp_path / "script.ts"}
    torch.save({"model": {}}, files["CHECKPOINT"])
    torch.jit.trace(torch.nn.Identity(), torch.zeros(1)).save(str(files["SCRIPT"]))
    flags = [files.get(flag, flag) for flag in flags]
    done = call("evaluate_model", *data, "--size", SIZE, *flags, *SHORT, "OUTPUT_DIR", tmp_path / "out")
    assert done.returncode == 1 and words in done.stderr
    assert "Traceback" not in done.stderr and not list(tmp_path.glob("out/journal*"))


def test_a_data_set_is_needed(callables, tmp_path):
    flags = ["--callable", "external_callables:learned"]
    for given, words in (([], "--dataset NAME or --json FILE"), (["--image-root", "x"], "must go with --json")):
        done = call("evaluate_model", *flags, *given, *SHORT, "OUTPUT_DIR", tmp_path / "out")
        assert done.returncode == 1 and words in done.stderr


@pytest.mark.parametrize(
    ("gpu", "opts", "first"),
    [(False, ["TEST.EPS", "2"], ["MODEL.DEVICE", "cpu"]), (True, ["TEST.EPS", "2"], ["TEST.EPS", "2"])],
)
def test_a_machine_without_a_gpu_needs_no_key(monkeypatch, gpu, opts, first):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    assert evaluate_model.with_device(opts)[:2] == first and evaluate_model.with_device(opts)[-2:] == opts
    assert evaluate_model.with_device(["MODEL.DEVICE", "cuda"]) == ["MODEL.DEVICE", "cuda"]
