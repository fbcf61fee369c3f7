"""A pretend CUDA device: tensors that claim to be on cuda:0, hold CPU data and refuse to mix with CPU tensors.

It finds device faults and counts waits (see `waits.py`) on machines without a GPU. It has no kernels of its own, no
speed and no memory limit: numbers are those of the CPU. Underneath, torch sees its custom backend, which Python code
may provide, so that composite operators and autograd treat these tensors as a device's; `Tensor.device` says cuda:0.
The custom backend stays registered until the process ends. A real GPU is never touched, and must not be used
for gradients in the same process afterwards.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import torch._dynamo  # before names in torch change: it looks each up once
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_map

from tests.pretend import autocast
from tests.pretend.waits import is_pinned, note_copy, note_operator, pin, unpin

CUDA, CPU = torch.device("cuda:0"), torch.device("cpu")
BACKEND = "pretend"

# Operators that make a tensor like the one they get, wherever that is.
LIKE = ("new_", "zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like", "randint_like")
# Kernels that do not take a CPU scalar tensor beside a device's tensors; those built on TensorIterator do.
NO_CPU_SCALAR = ("cat", "stack", "mm", "bmm", "addmm", "baddbmm", "gather", "scatter", "index_select", "embedding")
INDEXING = ("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index")


class DeviceMismatch(RuntimeError):
    """What CUDA refuses: operands on two devices."""


class PretendTensor(torch.Tensor):
    """A tensor on the pretend device; `data_on_cpu` holds its numbers."""

    data_on_cpu: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, value: Tensor) -> PretendTensor:
        result = torch.Tensor._make_wrapper_subclass(
            cls,
            value.size(),
            strides=value.stride(),
            storage_offset=value.storage_offset(),
            dtype=value.dtype,
            device=torch.device(BACKEND, 0),
        )
        result.data_on_cpu = value
        return result

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return execute(func, args, kwargs or {})

    device = property(lambda self: CUDA)
    is_cuda = property(lambda self: True)

    def get_device(self) -> int:
        return 0

    def to(self, *args, **kwargs):
        return super().to(*map(_as_backend, args), **{key: _as_backend(value) for key, value in kwargs.items()})

    def cuda(self, *args, **kwargs):
        return self

    def tolist(self):
        return self.cpu().tolist()

    def numpy(self, *args, **kwargs):
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy it to host memory")

    def __array__(self, dtype=None):
        self.numpy()

    def __format__(self, spec: str) -> str:
        return format(self.item() if self.dim() == 0 else repr(self), spec)

    def __repr__(self, *, tensor_contents=None) -> str:
        return f"{self.data_on_cpu.detach()!r} on {CUDA}"

    def __reduce_ex__(self, protocol):
        return self.data_on_cpu.detach().__reduce_ex__(protocol)

    def __deepcopy__(self, memo):
        if id(self) not in memo:
            result = PretendTensor(copy.deepcopy(self.data_on_cpu.detach())).requires_grad_(self.requires_grad)
            if isinstance(self, torch.nn.Parameter):
                result._is_param = True
            memo[id(self)] = result
        return memo[id(self)]

    @property
    def data(self):
        return self.detach()

    @data.setter
    def data(self, value: Tensor) -> None:
        if not isinstance(value, PretendTensor):
            raise DeviceMismatch("the data of a tensor on cuda:0 is set to a tensor on the CPU")
        torch.Tensor.data.__set__(self, value)
        self.data_on_cpu = value.data_on_cpu


def _as_backend(value: Any) -> Any:
    """The device by the name that torch's C++ code knows it by; anything else as it is."""
    is_device = isinstance(value, torch.device) or (isinstance(value, str) and value.startswith("cuda"))
    return torch.device(BACKEND, 0) if is_device and torch.device(value).type == "cuda" else value


def _unpack(value: Any, ours: list[Tensor], foreign: list[Tensor]) -> Any:
    """An argument of an operator with CPU data and CPU devices; gathers the tensors in it by where they are."""
    kind = type(value)
    if kind is PretendTensor:
        ours.append(value)
        return value.data_on_cpu
    if kind is list or kind is tuple:
        return [_unpack(item, ours, foreign) for item in value]
    if kind is torch.device:
        return CPU
    if isinstance(value, Tensor):
        foreign.append(value)
    return value


def _pack(value: Any) -> Any:
    """A result of an operator, on the device."""
    if isinstance(value, tuple | list):
        return type(value)([_pack(item) for item in value])
    return PretendTensor(value) if isinstance(value, Tensor) and type(value) is not PretendTensor else value


def execute(func: Any, args: tuple, kwargs: dict) -> Any:
    """One operator of torch, on the CPU data of its arguments, as a CUDA device would take it.

    Raises:
        DeviceMismatch: CUDA would not.
    """
    # torch resets it, and torch.tensor(list, device="cuda") would then copy to the device unseen.
    torch._C._set_only_lift_cpu_tensors(True)
    name, ours, foreign = func.overloadpacket.__name__, [], []
    own_args = _unpack(args, ours, foreign)
    own_kwargs = {key: _unpack(value, ours, foreign) for key, value in kwargs.items()}
    target = kwargs.get("device")
    on_device = bool(ours) if target is None else target.type in ("cuda", BACKEND)
    if not ours and name in ("is_pinned", "_pin_memory"):
        return is_pinned(foreign[0]) if name == "is_pinned" else pin(foreign[0])
    if not ours and not on_device:
        _check_generator(kwargs, "cpu")
        if kwargs.get("pin_memory"):
            return pin(func(*args, **{**kwargs, "pin_memory": False}))
        return func(*args, **kwargs)
    if name == "_fused_sdp_choice":
        return 0  # the plain implementation, which is made of operators that every device has
    if name == "_to_copy":
        _note_exchange(on_device, args[0], kwargs.get("non_blocking", False))
    elif name == "copy_":
        on_device = type(args[0]) is PretendTensor
        _note_exchange(on_device, args[1], (*args, kwargs.get("non_blocking", False))[2])
    elif name in INDEXING:
        _check_index(func, args)
    elif ours or not name.startswith(LIKE):
        _check_operands(func, name, foreign)
    _check_generator(kwargs, "cuda")
    note_operator(name, args, kwargs)
    result = _draw(func, own_args, own_kwargs) if torch.Tag.nondeterministic_seeded in func.tags else None
    if result is None:
        result = func(*own_args, **own_kwargs)
    if name == "copy_":
        return args[0]
    if not on_device or not isinstance(result, Tensor | tuple | list):
        return result
    result = _pack(result)
    return return_and_correct_aliasing(func, args, kwargs, result) if ours else result


def _draw(func: Any, args: list, kwargs: dict) -> Any:
    """The random numbers of the device's own generator; None where the operator draws from another."""
    if not STATE.own_random or kwargs.get("generator") is not None:
        return None
    with torch.random.fork_rng(devices=[]):
        torch.random.set_rng_state(STATE.random.get_state())
        result = func(*args, **kwargs)
        STATE.random.set_state(torch.random.get_rng_state())
    return result


def _note_exchange(to_device: bool, source: Tensor, non_blocking: bool) -> None:
    if to_device != (type(source) is PretendTensor):
        note_copy("to device" if to_device else "to host", source, non_blocking)


def _check_operands(func: Any, name: str, foreign: list[Tensor]) -> None:
    wrong = [tensor for tensor in foreign if tensor.dim() > 0 or name in NO_CPU_SCALAR]
    if wrong:
        shapes = [tuple(tensor.shape) for tensor in wrong]
        raise DeviceMismatch(
            f"{func}: Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! "
            f"On the CPU are those of shape {shapes}."
        )


def _check_index(func: Any, args: tuple) -> None:
    """A CUDA tensor takes indices on the CPU, which it copies; values and the tensor itself must be on the device."""
    values = args[2] if len(args) > 2 else None
    if not isinstance(args[0], PretendTensor):
        raise DeviceMismatch(f"{func}: indices are on cuda:0, the indexed tensor is on the CPU")
    if isinstance(values, Tensor) and not isinstance(values, PretendTensor) and values.dim() > 0:
        raise DeviceMismatch(f"{func}: the indexed tensor is on cuda:0, the values are on the CPU")
    for index in args[1]:
        if isinstance(index, Tensor) and not isinstance(index, PretendTensor):
            note_copy("to device", index, non_blocking=False)


class PretendGenerator(torch.Generator):
    """`torch.Generator(device)` that remembers a pretend device; operators see the C++ object alone."""

    def __new__(cls, device: Any = "cpu"):
        result = super().__new__(cls)
        result.on = torch.device(device).type
        if result.on == "cuda":
            # Kept alive: one of the CPU that came to lie at its address would be taken for it.
            STATE.generators[result._cdata] = result
        return result

    device = property(lambda self: CUDA if self.on == "cuda" else torch.device("cpu"))


def _check_generator(kwargs: dict, wanted: str) -> None:
    generator = kwargs.get("generator")
    if generator is not None and (generator._cdata in STATE.generators) != (wanted == "cuda"):
        raise DeviceMismatch(f"Expected a '{wanted}' device type for generator")


class PretendMode(TorchDispatchMode):
    """Sees every operator, those too that make tensors from nothing."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return execute(func, args, kwargs or {})


STATE = SimpleNamespace(random=torch.Generator(), own_random=True, generators={})


def _cuda_functions() -> dict[str, Callable]:
    """What `torch.cuda` answers with one device."""
    gigabyte = 2**30
    nothing = lambda *args, **kwargs: None  # noqa: E731
    zero = lambda *args, **kwargs: 0  # noqa: E731
    return {
        **dict.fromkeys(("_lazy_init", "init", "set_device", "synchronize", "empty_cache"), nothing),
        **dict.fromkeys(("reset_peak_memory_stats", "reset_max_memory_allocated"), nothing),
        **dict.fromkeys(("memory_allocated", "max_memory_allocated", "memory_reserved"), zero),
        **dict.fromkeys(("max_memory_reserved", "current_device"), zero),
        "is_available": lambda: True,
        "is_current_stream_capturing": lambda: False,
        "is_initialized": lambda: True,
        "is_bf16_supported": lambda *args, **kwargs: True,
        "device_count": lambda: 1,
        "mem_get_info": lambda device=None: (gigabyte, gigabyte),
        "get_device_name": lambda device=None: "pretend device",
        "get_device_capability": lambda device=None: (8, 0),
        "manual_seed": lambda seed: STATE.random.manual_seed(int(seed)),
        "manual_seed_all": lambda seed: STATE.random.manual_seed(int(seed)),
        "get_rng_state": lambda device=None: STATE.random.get_state(),
        "get_rng_state_all": lambda: [STATE.random.get_state()],
        "set_rng_state": lambda state, device=None: STATE.random.set_state(state),
        "set_rng_state_all": lambda states: STATE.random.set_state(states[0]),
    }


def _of_backend(function: Callable, device_type: str = "cuda") -> Any:
    """The answer of a function of torch that takes the name of a device, about the pretend device."""
    return function(BACKEND if device_type == "cuda" else device_type)


def _register_backend() -> None:
    """
    Raises:
        RuntimeError: this torch has no custom backends in Python.
    """
    if not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"):
        raise RuntimeError(
            f"torch {torch.__version__} has no custom backend in Python, which the pretend device is made of. Install "
            "the torch of requirements.txt."
        )
    if not hasattr(torch, BACKEND):
        backend_registration._setup_privateuseone_for_python_backend(BACKEND)
        getattr(torch, BACKEND).get_amp_supported_dtype = lambda: [torch.bfloat16, torch.float16]
        STATE.autocast = autocast.register()


@contextmanager
def pretend_device(own_random: bool = True) -> Iterator[None]:
    """Context in which this process has one CUDA device, "cuda:0".

    Args:
        own_random: whether the device draws its own random numbers, as CUDA does; otherwise those that the CPU would
            draw in its place, so that results can be compared.

    Raises:
        RuntimeError: this torch cannot have it.
    """
    _register_backend()
    torch._C._ensureCUDADeviceGuardSet()  # without a driver, "cuda" still has an index
    enter_autocast = torch.amp.autocast_mode.autocast.__init__

    def on_backend(self, device_type, *args, **kwargs):
        enter_autocast(self, BACKEND if device_type == "cuda" else device_type, *args, **kwargs)

    enter_inference_mode = torch.inference_mode.__enter__

    def stay_in_one_thread(self):
        enter_inference_mode(self)
        torch._C._set_multithreading_enabled(False)  # inference_mode(False) turns it on

    lifting = torch._C._only_lift_cpu_tensors()
    with ExitStack() as stack:
        for name, function in _cuda_functions().items():
            stack.enter_context(mock.patch.object(torch.cuda, name, function))
            for module in (torch.cuda.random, torch.cuda.graphs, torch.cuda.memory):
                if hasattr(module, name):
                    stack.enter_context(mock.patch.object(module, name, function))
        stack.enter_context(mock.patch.object(torch.amp.autocast_mode.autocast, "__init__", on_backend))
        for function in (torch.is_autocast_enabled, torch.get_autocast_dtype):  # recomputed activations look there
            renamed = functools.partial(_of_backend, function)
            stack.enter_context(mock.patch.object(torch, function.__name__, renamed))
        stack.enter_context(mock.patch.object(torch.inference_mode, "__enter__", stay_in_one_thread))
        stack.enter_context(mock.patch.object(torch, "Generator", PretendGenerator))
        stack.callback(torch._C._set_only_lift_cpu_tensors, lifting)
        stack.callback(unpin)
        # One thread, whose stack names the place that waits.
        stack.enter_context(torch.autograd.set_multithreading_enabled(False))
        stack.enter_context(PretendMode())
        STATE.random.manual_seed(0)
        STATE.own_random = own_random
        yield


def on_cpu(value: Any) -> Any:
    """A nested structure with the numbers of its tensors."""
    return tree_map(lambda x: x.data_on_cpu if isinstance(x, PretendTensor) else x, value)


def assert_same_as_on_cpu(case: Callable[[str], Any]) -> Any:
    """Runs a case on the pretend device and on the CPU and compares what it gives, exactly: a text, or
    tensors in a nested structure.

    Args:
        case: gets the name of the device. It must build what it needs there and seed its own random numbers.

    Raises:
        AssertionError: they differ.
        DeviceMismatch: CUDA would refuse an operator.
    """
    with sdpa_kernel(SDPBackend.MATH):  # CPU and CUDA have other fused kernels
        with pretend_device(own_random=False):
            found = on_cpu(case("cuda"))
        expected = case("cpu")
    if isinstance(found, str):
        assert found.splitlines() == expected.splitlines()
    else:
        torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
    return found


__all__ = ["CUDA", "DeviceMismatch", "PretendTensor", "assert_same_as_on_cpu", "on_cpu", "pretend_device"]
