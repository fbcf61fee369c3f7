"""The pretend device itself: what it refuses, what it allows, what it counts."""

from __future__ import annotations

import copy
import runpy
import sys
from collections import Counter

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.pretend.device import CUDA, DeviceMismatch, on_cpu, pretend_device
from tests.pretend.waits import count_waits

REFUSED = {
    "add": lambda x: x + torch.ones(3),
    "cat": lambda x: torch.cat([x, torch.ones(3, 3)]),
    "a scalar tensor in cat": lambda x: torch.stack([x.sum(), torch.tensor(1.0)]),
    "where": lambda x: torch.where(x > 0, x, torch.zeros(3, 3)),
    "values of an index": lambda x: x.__setitem__(torch.tensor([0]), torch.ones(1, 3)),
    "index into a CPU tensor": lambda x: torch.ones(3)[x.argmax(dim=1)],
    "gather": lambda x: x.gather(1, torch.zeros(3, 1, dtype=torch.int64)),
    "numpy": lambda x: x.numpy(),
    "data": lambda x: setattr(x, "data", torch.ones(3, 3)),
    "generator": lambda x: torch.rand(3, device=x.device, generator=torch.Generator()),
    "generator of the device": lambda x: torch.rand(3, generator=torch.Generator(x.device)),
    "binary_cross_entropy in autocast": lambda x: torch.autocast("cuda")(F.binary_cross_entropy)(x, x),
}
WORDS = "same device|on the CPU|Expected a|can't convert cuda|unsafe to autocast"
ALLOWED = {
    "a CPU scalar": lambda x: x + torch.tensor(2.0),
    "a CPU index": lambda x: x[torch.tensor([0, 2])],
    "factory": lambda x: torch.zeros_like(x) + x.new_ones(3) + torch.full((3,), 2.0, device="cuda"),
    "composite": lambda x: F.one_hot(x.argmax(dim=1)) + torch.einsum("ij,ij->i", x, x)[:, None],
    "attention": lambda x: F.scaled_dot_product_attention(x[None], x[None], x[None]),
    "generator": lambda x: torch.rand(3, device=x.device, generator=torch.Generator(x.device).manual_seed(1)),
    "dropout": lambda x: F.dropout(x),
    "copy": lambda x: copy.deepcopy(x).to("cuda:0").to(torch.float64),
}
WAITS = {
    "item": (lambda x: float(x.sum()), 1),
    "branch": (lambda x: 1 if (x > 0).any() else 2, 1),
    "list": (lambda x: x.tolist(), 1),
    "to host": (lambda x: x.cpu(), 1),
    "to device": (lambda x: torch.tensor([1.0, 2.0], device="cuda"), 1),
    "pageable, although non-blocking": (lambda x: torch.ones(3).to("cuda", non_blocking=True), 1),
    "pinned": (lambda x: torch.ones(3).pin_memory()[1:].to("cuda", non_blocking=True), 0),
    "pinned from the start": (lambda x: torch.ones(3, pin_memory=True).to("cuda", non_blocking=True), 0),
    "pinned, but blocking": (lambda x: torch.ones(3).pin_memory().to("cuda"), 1),
    "boolean index": (lambda x: x[x > 0], 1),
    "boolean index set to a number": (lambda x: x.__setitem__(x > 0, 1.0), 0),
    "boolean index set to numbers": (lambda x: x.__setitem__(x < 9, x.flatten() + 1), 1),
    "nonzero": (lambda x: x.nonzero(), 1),
    "unique": (lambda x: x.unique(), 1),
    "repeats of unknown sum": (lambda x: x.repeat_interleave(x[0].long().abs(), dim=0), 1),
    "repeats of known sum": (lambda x: x.repeat_interleave(x[0].long() * 0 + 1, dim=0, output_size=3), 0),
    "a number in a place": (lambda x: x.__setitem__((0, 1), 3.0), 0),
    "numbers": (lambda x: (x * 2 + 1).clamp(min=0)[0, 1:].sum(), 0),
    "gradients": (lambda x: torch.autograd.grad((x.requires_grad_() ** 2).sum(), x), 0),
}


def grid() -> torch.Tensor:
    return torch.arange(9.0, device="cuda").view(3, 3) / 9


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    with pretend_device(), pytest.raises((DeviceMismatch, TypeError, RuntimeError), match=WORDS):
        REFUSED[name](grid())


@pytest.mark.parametrize("name", ALLOWED)
def test_allowed(name):
    with pretend_device():
        result = ALLOWED[name](grid())
        assert result.device == CUDA and result.is_cuda and result.cpu().device.type == "cpu"


@pytest.mark.parametrize("name", WAITS)
def test_counted(name):
    call, expected = WAITS[name]
    with pretend_device():
        x = grid()
        with count_waits() as waits:
            call(x)
    assert sum(waits.values()) == expected, waits
    assert all(place.startswith("tests/pretend/test_device.py:") for _, place in waits)


def test_a_module_computes_what_it_does_on_the_cpu():
    def step(device: str) -> tuple[torch.Tensor, list[torch.Tensor]]:
        torch.manual_seed(0)
        layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.3), nn.Flatten(), nn.Linear(144, 5)
        model, images = nn.Sequential(*layers).to(device), torch.rand(2, 3, 8, 8).to(device)
        optimizer = torch.optim.AdamW(model.parameters())
        torch.manual_seed(1)
        loss = F.cross_entropy(model(images), torch.tensor([1, 2], device=device))
        loss.backward()
        optimizer.step()
        assert all(isinstance(p, nn.Parameter) for p in model.parameters())
        return loss.detach(), [p.detach() for p in copy.deepcopy(model).parameters()]

    loss, weights = step("cpu")
    with pretend_device():
        own_loss, own_weights = on_cpu(step("cuda"))
    assert torch.equal(loss, own_loss) and all(map(torch.equal, weights, own_weights))


def test_its_random_numbers_are_its_own():
    """As on CUDA: draws there leave the CPU's state alone, and `fork_rng` without the device does not restore it."""
    with pretend_device():
        before, own = torch.get_rng_state(), torch.cuda.get_rng_state()
        torch.rand(3, device="cuda")
        assert torch.equal(torch.get_rng_state(), before)
        assert not torch.equal(torch.cuda.get_rng_state(), own)
        own = torch.cuda.get_rng_state()
        with torch.random.fork_rng(devices=[CUDA]):
            torch.rand(3, device="cuda")
        assert torch.equal(torch.cuda.get_rng_state(), own)


def test_a_generator_of_the_cpu_is_not_taken_for_one_of_the_device():
    """Also at the address where one of the device was before."""
    with pretend_device():
        for _ in range(20):
            torch.Generator("cuda")
            torch.rand(3, generator=torch.Generator())


def test_autocast_has_the_types_of_cuda():
    with pretend_device(), torch.autocast("cuda", dtype=torch.bfloat16):
        x = grid()
        product = x @ x
        assert product.dtype == torch.bfloat16 and (product + 1).dtype == torch.bfloat16
        assert product.softmax(dim=1).dtype == product.sum().dtype == torch.float32
    with pretend_device():
        assert (grid() @ grid()).dtype == torch.float32


def test_it_ends_with_its_context():
    available, generator = torch.cuda.is_available(), torch.Generator
    with pretend_device():
        assert torch.cuda.is_available() and torch.cuda.device_count() == 1
    assert torch.cuda.is_available() == available and torch.Generator is generator
    assert torch.ones(3).device.type == "cpu"


def test_a_torch_without_custom_backends_is_named(monkeypatch):
    monkeypatch.delattr("torch.utils.backend_registration._setup_privateuseone_for_python_backend")
    with pytest.raises(RuntimeError, match=r"requirements\.txt"), pretend_device():
        pass


def test_scripts_run_on_it(tmp_path, monkeypatch, capsys):
    script = tmp_path / "script.py"
    script.write_text("import sys, torch\nprint(torch.ones(2, device=sys.argv[1]).device)\n")
    monkeypatch.setattr(sys, "argv", ["tests.pretend", str(script), "cuda"])
    monkeypatch.setattr(sys, "path", list(sys.path))
    runpy.run_module("tests.pretend", run_name="__main__")
    assert capsys.readouterr().out == "cuda:0\n"


def test_counts_nest():
    with pretend_device():
        x = grid()
        with count_waits() as outer:
            x.cpu()
            with count_waits() as inner:
                x.cpu()
    assert sum(inner.values()) == 1 and sum(Counter(outer).values()) == 2
