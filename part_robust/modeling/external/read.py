"""Reads classifiers from elsewhere: TorchScript, torch.export, timm, torchvision, a Python callable.

`torch.jit.load` runs nothing but the graph, and weights are read as tensors alone. `torch.export.load` unpickles what
is in the file, and a callable is the user's own code: both run with the user's rights.
"""

from __future__ import annotations

import importlib
import inspect
import logging
import math
import warnings
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from part_robust.utils.errors import UserError
from part_robust.utils.files import check_file
from part_robust.utils.safe_loading import CONTAINERS, load_state

logger = logging.getLogger(__name__)

Function = Callable[[Tensor], Any]
# Fewest and most images at once; 0 for any.
Batch = tuple[int, int]
ANY: Batch = (1, 0)
HALF = (torch.float16, torch.bfloat16)
# Classifiers inside models of torchvision that only their training uses: beginnings of the names of their weights.
AUXILIARY = {"googlenet": ("aux1.", "aux2."), "inception_v3": ("AuxLogits.",)}


@dataclass(frozen=True)
class ReadModel:
    """A model that was read.

    Attributes:
        function: images (N, 3, H, W) -> outputs.
        batch: how many images it takes at once.
        notes: sentences for the reader of the results.
    """

    function: Function
    batch: Batch
    notes: tuple[str, ...] = ()


def read_model(kind: str, name: str, weights: str, device: torch.device) -> ReadModel:
    """Read a model onto a device, in float32 and in eval mode.

    Args:
        kind: MODEL.EXTERNAL.KIND.
        name: of the model in timm or torchvision, or "package.module:function".
        weights: its file; of a callable without weights the source of its module.
        device: where it computes.

    Raises:
        ImportError: timm or the callable's module cannot be imported.
        UserError: the file or the name is not such a model.
        OSError: the file cannot be read.
    """
    if kind not in READERS:
        raise UserError(f"MODEL.EXTERNAL.KIND must be one of {', '.join(READERS)}, got {kind!r}")
    if not weights:
        raise UserError("MODEL.WEIGHTS must be the file of the model, got ''")
    check_file(weights, "the file of a model")
    function, batch = READERS[kind](name, weights, device)
    if not isinstance(function, nn.Module):
        return ReadModel(function, batch)
    halves = {str(p.dtype).removeprefix("torch.") for p in function.parameters() if p.dtype in HALF}
    notes = [f"weights are {dtype}: they are evaluated in float32" for dtype in sorted(halves)]
    function = function.to(device).float()
    if kind != "exported":  # such a module has one mode
        function.eval()
    return ReadModel(function, batch, tuple(notes))


def _read_torchscript(name: str, weights: str, device: torch.device) -> tuple[Function, Batch]:
    try:
        return torch.jit.load(weights, map_location=device), ANY
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"--torchscript {weights} must be a file of torch.jit.save, got {last_line(error)}. If it holds weights "
            "alone, give --timm NAME --weights or --torchvision NAME --weights"
        ) from error


def _read_exported(name: str, weights: str, device: torch.device) -> tuple[Function, Batch]:
    from torch.export.passes import move_to_device_pass

    program = load_exported(weights)
    return move_to_device_pass(program, device).module(), _batch_of(program)


def load_exported(path: str | Path) -> torch.export.ExportedProgram:
    """Read a file of torch.export.save.

    Raises:
        UserError: it is something else, or of a device that this machine does not have.
        OSError: it cannot be read.
    """
    check_file(path, "a file of torch.export.save")
    log = logging.getLogger("torch.export")
    level = log.level
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch's own reading
            log.setLevel(logging.CRITICAL)  # which prints a traceback before it raises
            return torch.export.load(str(path))
    except Exception as error:  # damaged files raise anything
        found = _other_archive(path) or last_line(error)
        raise UserError(f"--exported {path} must be a file of torch.export.save, got {found}") from error
    finally:
        log.setLevel(level)


def _other_archive(path: str | Path) -> str:
    """Return what else that torch writes a file is, "" where that is unknown."""
    if not zipfile.is_zipfile(path):
        return ""
    with zipfile.ZipFile(path) as archive:
        names = {name.rpartition("/")[2] for name in archive.namelist()}
    if "constants.pkl" in names:
        return "one of torch.jit.save: give it as --torchscript"
    if "data.pkl" in names and "archive_format" not in names:
        return "one of torch.save: give its weights as --timm NAME --weights or --torchvision NAME --weights"
    return ""


def input_shape(program: torch.export.ExportedProgram) -> list[int | torch.SymInt]:
    """Return the shape of the first input; entries that may vary are symbols."""
    first = program.graph_signature.user_inputs[0]
    for node in program.graph.nodes:
        if node.name == first and isinstance(node.meta.get("val"), Tensor):
            return list(node.meta["val"].shape)
    raise UserError("--exported must be a program whose first input is a tensor of images")


def _batch_of(program: torch.export.ExportedProgram) -> Batch:
    number = input_shape(program)[0]
    if isinstance(number, int):
        return number, number
    limits = program.range_constraints.get(number.node.expr)
    if limits is None:
        return ANY
    upper = float(limits.upper)
    return max(int(limits.lower), 1), int(upper) if math.isfinite(upper) and upper < 2**31 else 0


def _read_timm(name: str, weights: str, device: torch.device) -> tuple[Function, Batch]:
    timm = import_timm()

    def build(classes: int) -> nn.Module:
        try:
            return timm.create_model(name, pretrained=False, num_classes=classes)
        except (RuntimeError, ValueError, TypeError) as error:
            raise UserError(f"--timm must be a model of timm {timm.__version__}, got {name}: {error}") from error

    return _with_weights(build, weights), ANY


def import_timm() -> Any:
    """Return the package timm.

    Raises:
        ImportError: it is not installed; the message has the command.
    """
    try:
        return importlib.import_module("timm")
    except ImportError as error:
        raise ImportError("--timm needs timm: pip install part_robust[timm]") from error


def _read_torchvision(name: str, weights: str, device: torch.device) -> tuple[Function, Batch]:
    from torchvision import models

    unused = AUXILIARY.get(name, ())
    options = {"aux_logits": False, "init_weights": False} if unused else {}

    def build(classes: int) -> nn.Module:
        try:
            return models.get_model(name, weights=None, num_classes=classes, **options)
        except (ValueError, TypeError) as error:
            raise UserError(f"--torchvision must be a model of torchvision, got {name}: {error}") from error

    return _with_weights(build, weights, unused), ANY


def _with_weights(build: Callable[[int], nn.Module], weights: str, unused: tuple[str, ...] = ()) -> nn.Module:
    """Build a model with as many outputs as the file has, and load the file.

    Args:
        build: of a number of outputs.
        weights: the file.
        unused: beginnings of names of weights that are left out.
    """
    state = _state(weights)
    # The layer whose shape depends on the number of classes says how many the file has.
    with torch.device("meta"):
        few, more = (build(number).state_dict() for number in (2, 3))
    state = {key: value for key, value in _without_prefix(state, few).items() if not key.startswith(unused)}
    counts = {len(state[key]) for key, value in few.items() if value.shape != more[key].shape and key in state}
    model = build(max(counts, default=2))
    wanted = model.state_dict()
    missing = [key for key in wanted if key not in state and not key.endswith("num_batches_tracked")]
    unknown = [key for key in state if key not in wanted]
    other = [key for key in wanted if key in state and state[key].shape != wanted[key].shape]
    for keys, words in ((missing, "are not in it"), (unknown, "in it are unknown"), (other, "have another shape")):
        if keys:
            raise UserError(
                f"--weights {weights} must hold the weights of this model, got others: {len(keys)} of {len(wanted)} "
                f"{words}, first {keys[0]}"
            )
    model.load_state_dict(state, strict=False)
    return model


def _state(path: str) -> dict[str, Tensor]:
    if path.endswith(".safetensors"):
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except Exception as error:  # damaged files raise a type of the package's Rust code
            raise UserError(f"--weights {path} must be a file of safetensors, got {last_line(error)}") from error
    content = load_state(path)
    inner = next((content[name] for name in CONTAINERS if isinstance(content.get(name), Mapping)), content)
    return {key: value for key, value in inner.items() if isinstance(value, Tensor)}


def _without_prefix(state: Mapping[str, Tensor], wanted: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the weights without the prefix that wrappers such as DistributedDataParallel and Lightning add."""
    first = next(iter(wanted))
    prefix = next((key.removesuffix(first) for key in state if key.endswith(f".{first}") and first not in state), "")
    return {key.removeprefix(prefix): value for key, value in state.items()}


def _read_callable(name: str, weights: str, device: torch.device) -> tuple[Function, Batch]:
    function = find_callable(name)
    arguments = () if Path(weights).samefile(source_file(name)) else (weights,)
    try:
        result = function(*arguments)
    except Exception as error:  # the user's own code raises anything
        logger.debug("%s failed", name, exc_info=True)
        given = f"the path {weights}" if arguments else "no argument (--weights FILE gives it a path)"
        raise UserError(
            f"--callable {name} must return a model, got {type(error).__name__}: {last_line(error)}, called with "
            f"{given}. log.txt has the traceback"
        ) from error
    if not callable(result):
        raise UserError(f"--callable {name} must return a model or a function, got {result!r:.40}")
    return result, ANY


def find_callable(name: str) -> Callable[..., Any]:
    """Return the function that "package.module:function" names.

    Raises:
        ImportError: there is no such module.
        UserError: there is no such function in it, or the name has another form.
    """
    module_name, _, attribute = name.partition(":")
    if not attribute or not all(part.isidentifier() for part in (*module_name.split("."), attribute)):
        raise UserError(f"--callable must be package.module:function, got {name!r}")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ImportError(f"--callable {name}: {error}. Is its folder in PYTHONPATH?") from error
    function = getattr(module, attribute, None)
    if not callable(function):
        raise UserError(f"--callable must name a function of {module_name}, got {attribute}, which it does not have")
    return function


def source_file(name: str) -> Path:
    """Return the file of the module of "package.module:function".

    Raises:
        ImportError, UserError: same as `find_callable`; the module has no source.
    """
    find_callable(name)
    module = importlib.import_module(name.partition(":")[0])
    try:
        path = inspect.getsourcefile(module)
    except TypeError:
        path = None
    if path is None:
        raise UserError(f"--callable {name} must be in a file of Python source, got a module without one")
    return Path(path)


def last_line(error: BaseException) -> str:
    """Return the last line of a message, where the interpreters of graphs say what is wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


READERS: dict[str, Callable[[str, str, torch.device], tuple[Function, Batch]]] = {
    "torchscript": _read_torchscript,
    "exported": _read_exported,
    "timm": _read_timm,
    "torchvision": _read_torchvision,
    "callable": _read_callable,
}
