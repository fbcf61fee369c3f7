"""The rows of the battery, most important first: what is checked and timed, of which model, with which settings."""

import functools
import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.gpu_models import FAMILIES, Case, Size, check
from benchmarks.timing import wait
from part_robust.layers.kernel_choice import why_not_triton
from part_robust.layers.ms_deform_attn import ms_deform_attn
from part_robust.utils.precision import tf32

PRECISIONS = ("float32", "tf32", "bfloat16")
# Time given to repeats of one row, and how many there are at least and at most.
SECONDS, LEAST, MOST = 3.0, 3, 50
# Settings that are taken away from, or added to, a training in bfloat16.
PLAIN_ATTENTION = ["MODEL.DINO.MS_DEFORM_ATTN", "grid_sample", "MODEL.MASK_DINO.MS_DEFORM_ATTN", "grid_sample"]
SETTINGS = {
    "channels last": ["SOLVER.CHANNELS_LAST", True],
    "cuDNN does not try kernels": ["CUDNN_BENCHMARK", False],
    "attention in plain PyTorch": PLAIN_ATTENTION,
    "optimizer not fused": [],
    "compiled attack": ["ATTACK.COMPILE", True],
}


class RowSkipped(Exception):
    """A row that this machine or size has no use for, with the reason."""


@dataclass
class Row:
    """A row: its name, and what gives its numbers, from those of the rows before, by name."""

    name: str
    run: Callable[[dict[str, dict]], dict]


def sizes() -> dict[str, Size]:
    return {
        "full": Size("part_imagenet", side=224, images=32, steps=10, long_steps=100, screen_steps=20, matrix=8192),
        "small": Size("part_shapes", side=64, images=2, steps=2, long_steps=3, screen_steps=2, matrix=64, repeats=1),
    }


def rows_of(device: torch.device, size: Size) -> list[Row]:
    """The battery."""
    rows = [Row(f"check {family}", lambda _, f=family: check(f, size, device)) for family in FAMILIES]
    rows += [Row(f"matrix product {p}", functools.partial(_ceiling, p, size, device)) for p in PRECISIONS]
    train = functools.partial(_train, size=size, device=device)
    for precision, family in itertools.product(PRECISIONS, FAMILIES):
        name = f"{family} PGD-{size.steps} training {precision}"
        rows.append(Row(name, functools.partial(train, family=family, precision=precision)))
    rows += _attention(device, size)
    for precision, family in itertools.product(PRECISIONS, FAMILIES):
        name = f"{family} clean training {precision}"
        rows.append(Row(name, functools.partial(train, family=family, precision=precision, attacked=False)))
    for family in FAMILIES:
        attack = functools.partial(_attack, family=family, size=size, device=device)
        pgd = functools.partial(attack, names=["pgd100x5"], steps=size.long_steps)
        rows.append(Row(f"{family} PGD-{size.long_steps} evaluation float32", pgd))
    for setting, family in itertools.product(SETTINGS, FAMILIES):
        name = f"{family} PGD-{size.steps} training bfloat16, {setting}"
        rows.append(Row(name, functools.partial(train, family=family, precision="bfloat16", setting=setting)))
    for family in FAMILIES:
        attack = functools.partial(_attack, family=family, size=size, device=device)
        screen = functools.partial(attack, names=["apgd_ce", "apgd_t"], steps=size.screen_steps)
        rows.append(Row(f"{family} tier screen of {size.screen_steps} steps, evaluation float32", screen))
    return rows


def _train(
    found: dict[str, dict],
    *,
    family: str,
    precision: str,
    size: Size,
    device: torch.device,
    attacked: bool = True,
    setting: str = "",
) -> dict:
    """A whole training step, from the batch on the host to the changed weights."""
    transformer = "DINO" in family
    if setting == "attention in plain PyTorch" and not transformer:
        raise RowSkipped("the model has no deformable attention")
    if setting == "compiled attack" and size.repeats == 1:
        raise RowSkipped("compiling takes minutes, which this size is not for")
    case = Case(family, size, device, precision, SETTINGS.get(setting, []), fused=setting != "optimizer not fused")
    with case.training(attacked) as step:
        return timed(step, device, size, size.images, found, precision, count=setting != "compiled attack")


def _attack(
    found: dict[str, dict], *, family: str, names: Sequence[str], steps: int, size: Size, device: torch.device
) -> dict:
    """Attacks of an evaluation on one batch, which no image leaves."""
    case = Case(family, size, device, "float32")
    with case.evaluation(names, 2) as short:
        short()
    with case.evaluation(names, steps) as run:
        return timed(run, device, size, size.images, warm=False, least=1)


def _ceiling(precision: str, size: Size, device: torch.device, found: dict[str, dict]) -> dict:
    """What the others' share of the ceiling is of."""
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    one, other = (torch.randn(size.matrix, size.matrix, device=device).to(dtype) for _ in range(2))
    with tf32(precision == "tf32"):
        return timed(lambda: one @ other, device, size) | {"note": f"{size.matrix} x {size.matrix}"}


def _attention(device: torch.device, size: Size) -> list[Row]:
    """Deformable attention alone: queries of an encoder, all backends."""
    backends = ["triton", "grid_sample", "gather", "embedding_bag", "deformops"]
    if device.type == "cpu":
        backends = ["sparse", *backends[1:]]
    return [
        Row(
            f"attention {dtype}, {'forward and backward' if backward else 'forward'}, {backend}",
            functools.partial(_attend, backend, backward, getattr(torch, dtype), size, device),
        )
        for dtype in ("float32", "bfloat16")
        for backward in (True, False)
        for backend in backends
    ]


def _attend(
    backend: str, backward: bool, dtype: torch.dtype, size: Size, device: torch.device, found: dict[str, dict]
) -> dict:
    fault = why_not_triton(device) if backend == "triton" else ""
    if fault:
        raise RowSkipped(f"the kernel does not run here: {fault}")
    shapes = [(max(size.side // stride, 1),) * 2 for stride in (8, 16, 32, 64)]
    tokens = sum(h * w for h, w in shapes)
    sample = deformops(shapes, device) if backend == "deformops" else functools.partial(_ours, shapes, backend)
    value = torch.randn(size.images, tokens, 8, 32, device=device).to(dtype).requires_grad_(backward)
    locations = torch.rand(size.images, tokens, 8, 4, 4, 2, device=device, requires_grad=backward)
    weights = torch.rand(size.images, tokens, 8, 4, 4, device=device).to(dtype).requires_grad_(backward)

    def run() -> None:
        result = sample(value, locations, weights)
        if backward:
            torch.autograd.grad(result.sum(), (value, locations, weights))

    return timed(run, device, size, size.images) | {"note": f"{size.images} images, {tokens} queries"}


def _ours(shapes: Sequence[tuple[int, int]], backend: str, value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    return ms_deform_attn(value, shapes, locations, weights, backend)


def deformops(shapes: Sequence[tuple[int, int]], device: torch.device) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """The same of the package deformops.

    Raises:
        RowSkipped: it is not installed.
    """
    try:
        from deformops.registry import MSDAMethod, msda
    except ImportError as error:
        raise RowSkipped(f"pip install deformops to compare with it ({error})") from None
    levels = torch.tensor(shapes, device=device)
    starts = torch.tensor([0, *itertools.accumulate(h * w for h, w in shapes[:-1])], device=device)

    def sample(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        return msda(value, levels, starts, locations, weights, method=MSDAMethod.LINEAR)

    return sample


def timed(
    run: Callable[[], object],
    device: torch.device,
    size: Size,
    images: int = 0,
    found: dict[str, dict] | None = None,
    precision: str = "",
    *,
    warm: bool = True,
    count: bool = True,
    least: int = LEAST,
) -> dict:
    """Median milliseconds of a call, after calls to warm up, with what follows from it.

    Args:
        run: one call of what is measured.
        device: where it runs.
        size: how often it is repeated.
        images: of one call.
        found: rows before, for the ceiling of this precision.
        precision: of that ceiling, one of PRECISIONS.
        warm: call it first, as often as is needed.
        count: count floating-point operations in a call to warm up. Triton kernels and compiled code are not counted.
        least: repeats, unless the size says.
    """
    flops = 0
    if warm:
        run()
    if warm and count:
        with FlopCounterMode(display=False) as counter:
            run()
        flops = counter.get_total_flops()
    wait(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    spent: list[float] = []
    start = time.perf_counter()
    while len(spent) < (size.repeats or least) or (
        not size.repeats and len(spent) < MOST and time.perf_counter() - start < SECONDS
    ):
        spent.append(_milliseconds(run, device))
    ms = statistics.median(spent)
    result = {"ms": ms, "repeats": len(spent)}
    if images:
        result["images_per_s"] = 1000 * images / ms
    if device.type == "cuda":
        result["peak_mb"] = torch.cuda.max_memory_allocated(device) / 1e6
    if flops:
        result["tflops"] = flops / ms / 1e9
        ceiling = (found or {}).get(f"matrix product {precision}", {}).get("tflops")
        if ceiling:
            result["ceiling_share"] = result["tflops"] / ceiling
    return result


def _milliseconds(run: Callable[[], object], device: torch.device) -> float:
    events = _events() if device.type == "cuda" else None
    wait(device)
    start = time.perf_counter()
    if events:
        events[0].record()
    run()
    if events:
        events[1].record()
    wait(device)
    return events[0].elapsed_time(events[1]) if events else 1000 * (time.perf_counter() - start)


def _events() -> Iterator | None:
    """Two marks on the device's own clock; None where it has none, as on a device that is only imitated."""
    try:
        events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
        events[0].record()
    except RuntimeError:
        return None
    return events
