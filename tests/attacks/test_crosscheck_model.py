"""Other implementations on images of a trained model that ours left, of which a made-up one stands in."""

from __future__ import annotations

import importlib
import io
import shutil
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.env import seed_all_rng
from torch.nn import functional as F

from part_robust.evaluation.statistics import wilson_interval
from part_robust.utils.errors import UserError
from part_robust.utils.files import read_json, write_json
from tests.commands import exit_code, undone
from tests.toy import tiny_cfg

TOOLS = Path(__file__).resolve().parents[2] / "tools"
EPS = 60.0
# One step of next to no length: whatever breaks an image is stronger.
WEAK = [
    *("ATTACK.SPECS.fgsm.STEP_SIZE", "0.001", "TEST.TIERS.screen", "('fgsm',)", "TEST.CHECKS.IMAGES", "2"),
    *("TEST.RESTART_ATTACKS", "()"),
    *("TEST.CHECKS.STEPS", "2", "TEST.CHECKS.LONG_STEPS", "2", "DATALOADER.TEST_BATCH_SIZE", "3"),
]


@pytest.fixture
def tool(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    return importlib.import_module("crosscheck_model")


@pytest.fixture
def peers_module(tool):
    return importlib.import_module("crosscheck_peers")


@pytest.fixture(scope="module")
def model_files(toy_data, tmp_path_factory) -> tuple[Path, Path]:
    """Config file and weights of an untrained model."""
    folder = tmp_path_factory.mktemp("model")
    seed_all_rng(0)
    cfg = tiny_cfg("resnet", "DATASETS.REGISTER", [["toy_val", *map(str, toy_data)]])
    torch.save({"model": build_model(cfg).state_dict()}, folder / "model.pth")
    (folder / "config.yaml").write_text(cfg.dump())
    return folder / "config.yaml", folder / "model.pth"


class Pgd:
    """A peer with an attack inside the ball, and one that makes images of noise outside of it."""

    def __init__(self, module) -> None:
        self.module, self.batches = module, []
        self.peer = module.Peer("none", {"pgd": ("linf",), "noise": ("linf",), "l2_alone": ("l2",)}, self.run)

    def run(self, net, images, labels, names, norm, eps, seed):
        self.batches.append((names[0], seed, len(images)))
        model, found = self.module.Scaled(net), images / 255
        generator = torch.Generator().manual_seed(seed)
        noise = torch.rand(images.shape, generator=generator)
        for _ in range(10 if names[0] == "pgd" else 0):
            found = found.detach().requires_grad_(True)
            (gradient,) = torch.autograd.grad(F.cross_entropy(model(found), labels), found)
            found = found + eps / 255 / 4 * gradient.sign()
            found = torch.minimum(torch.maximum(found, (images - eps) / 255), (images + eps) / 255).clamp(0, 1)
        if names[0] == "noise":
            found = 5 * noise - 2
        right = self.module.still_right(net, images, labels, 255 * found, norm, eps)
        return self.module.Outcome(right, model.forwards, 1.0)


def call(*arguments) -> tuple[int, str, str]:
    main = importlib.import_module("crosscheck_attacks").main
    stdout, stderr = io.StringIO(), io.StringIO()
    with undone(), redirect_stdout(stdout), redirect_stderr(stderr):
        code = exit_code(main, [str(argument) for argument in arguments])
    return code, stdout.getvalue(), stderr.getvalue()


@pytest.fixture(scope="module")
def evaluated(model_files, tmp_path_factory) -> Path:
    """Folder in which the tool has evaluated the model, and found no attack to run besides."""
    config, weights = model_files
    folder = tmp_path_factory.mktemp("evaluated")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(TOOLS))
        patch.setattr(importlib.import_module("crosscheck_attacks"), "installed_peers", lambda wanted: {})
        own = ["--config-file", config, "--weights", weights, "--record", folder, "--eps", EPS]
        code, _, errors = call(*own, "--opts", *WEAK)
    assert code == 1 and "--attacks must be of" in errors
    return folder


@pytest.fixture
def crosscheck(tool, peers_module, monkeypatch, evaluated, tmp_path):
    peer, folder = Pgd(peers_module), tmp_path / "record"
    monkeypatch.setattr(peers_module, "PEERS", {"pytest": peer.peer})  # a name that can be imported
    shutil.copytree(evaluated, folder)

    def run(*arguments):
        code, text, errors = call("--record", folder, *arguments)
        assert code == 0, errors
        return text

    return run, peer, folder


def test_a_peer_breaks_what_a_weak_evaluation_left(crosscheck):
    run, peer, folder = crosscheck
    text = run("--seeds", 2)
    record = read_json(folder / "robustness.json", "")
    left = record["evaluation"]["toy_val"]["tiers"]["screen"]["robust"]["correct"]
    files = {path.name: read_json(path, "") for path in (folder / "crosscheck_toy_val_screen").iterdir()}
    assert sorted(files) == [f"pytest_{name}_{seed}.json" for name in ("noise", "pgd") for seed in (0, 1)]
    broken = set(files["pytest_pgd_0.json"]["broken"])
    assert broken and left == 4 and len(files["pytest_pgd_0.json"]["tried"]) == left
    union = broken.union(*(file["broken"] for file in files.values()))
    low, high = (100 * end for end in wilson_interval(len(union), 12))
    assert f"{len(union)} of 12 images, {100 * len(union) / 12:.2f} points [{low:.2f}, {high:.2f}]" in text
    assert "target 0.2 points: missed" in text and str(sorted(broken)) in text
    assert peer.batches[:2] == [("pgd", 0, 3), ("pgd", 0, 1)]


def test_an_interrupted_comparison_continues(crosscheck):
    run, peer, folder = crosscheck
    whole = run("--attacks", "pgd").splitlines()[-8:]
    file = folder / "crosscheck_toy_val_screen" / "pytest_pgd_1.json"
    file.unlink()
    peer.batches.clear()
    assert run("--attacks", "pgd").splitlines()[-8:] == whole
    assert peer.batches == [("pgd", 1, 3), ("pgd", 1, 1)]
    # It was stopped between two batches.
    found = read_json(file, "")
    write_json(
        file, found | {"tried": found["tried"][:3], "broken": sorted(set(found["broken"]) & {*found["tried"][:3]})}
    )
    peer.batches.clear()
    run("--attacks", "pgd")
    assert peer.batches == [("pgd", 1, 1)] and sorted(read_json(file, "")["broken"]) == sorted(found["broken"])
    # Results of other weights or another radius are not used again.
    write_json(file, found)
    file.write_text(file.read_text().replace('"eps": 60.0', '"eps": 30.0'))
    peer.batches.clear()
    run("--attacks", "pgd")
    assert peer.batches == [("pgd", 1, 3), ("pgd", 1, 1)] and read_json(file, "") == found


def test_cheap_attacks_run_first_and_fixed_ones_once(tool, peers_module):
    runs = tool.planned(peers_module.PEERS, "linf", None, 2)
    assert len(runs) == len(set(runs))
    first, second = ([attack for _, attack, seed in runs if seed == own] for own in (0, 1))
    assert first[-3:] == ["fab_t", "square", "square"] and first[-7:-4] == ["apgd_t"] * 3
    assert "fab_t" not in second and "fmn" not in second and runs[: len(first)] == [r for r in runs if r[2] == 0]
    assert {name for name, _, _ in tool.planned(peers_module.PEERS, "l1", None, 1)} == {"pyautoattack", "adv_lib"}
    with pytest.raises(UserError, match="--attacks must be of pyautoattack, .* under linf, got pgd100"):
        tool.planned(peers_module.PEERS, "linf", ["pgd100"], 1)


def test_missing_implementations_are_named_with_the_remedy(peers_module, monkeypatch, capsys):
    installed = ["adv_lib"]
    monkeypatch.setattr(peers_module, "find_spec", lambda name: name in installed or None)
    assert list(peers_module.installed_peers()) == ["adv_lib"]
    remedy = "pip install --no-deps pyautoattack torchattacks"
    assert f"not installed, left out: pyautoattack, torchattacks ({remedy})" in capsys.readouterr().err
    installed.clear()
    with pytest.raises(UserError, match="got none of adv_lib: pip install --no-deps adv-lib"):
        peers_module.installed_peers(["adv_lib"])
    with pytest.raises(UserError, match="--peers must be of pyautoattack, torchattacks, adv_lib, got 'foolbox'"):
        peers_module.installed_peers(["foolbox"])


def test_mistakes_end_with_a_sentence(tool, peers_module, crosscheck, tmp_path):
    run, _, folder = crosscheck
    code, _, errors = call("--record", tmp_path / "empty")
    assert code == 1 and "--record must be the folder of an evaluation" in errors and "--config-file and" in errors
    run("--attacks", "pgd")
    code, _, errors = call("--record", folder, "--tier", "standard")
    assert code == 1 and "--tier must be one of screen of" in errors and "Traceback" not in errors
    other = tmp_path / "other.pth"
    other.write_bytes(b"")
    code, _, errors = call("--record", folder, "--weights", other)
    assert code == 1 and "has the SHA-256" in errors


def test_only_what_lies_in_the_threat_model_counts(peers_module):
    images = torch.full((2, 3, 4, 4), 100.0)
    labels = torch.tensor([0, 0])

    def net(images):
        mean = images.mean(dim=(1, 2, 3))
        return torch.stack([torch.full_like(mean, 120.0), mean], dim=1)

    brighter = torch.full_like(images, 1000.0)
    assert peers_module.still_right(net, images, labels, brighter, "linf", 19.0).tolist() == [True, True]
    assert peers_module.still_right(net, images, labels, brighter, "linf", 21.0).tolist() == [False, False]
    nothing = torch.full_like(images, float("nan"))
    assert peers_module.still_right(net, images, labels, nothing, "linf", 21.0).tolist() == [True, True]
