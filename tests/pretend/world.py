"""One of two processes of a pretend NCCL job: every collective must get contiguous tensors of the device.

The other process is played: it has sent what this one sends, except that all images of an evaluation are this one's,
as in a job with more processes than images. Collectives of Python objects go through gloo, as in detectron2, and must
hold no tensor of the device, which would be copied to the host to be pickled.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any
from unittest import mock

import torch
from detectron2.data.samplers import InferenceSampler
from detectron2.engine import defaults
from detectron2.utils import comm
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_leaves

from tests.pretend.device import DeviceMismatch, PretendTensor

SIZE = 2


class WrongCollective(DeviceMismatch):
    """What NCCL, or detectron2's gathering of objects, should not get."""


class PretendGroup:
    """A process group: gloo where the project says so, NCCL otherwise."""

    def __init__(self, *args: Any, backend: str | None = None, **kwargs: Any) -> None:
        self.backend = backend or "nccl"


class PretendDataParallel(DistributedDataParallel):
    """DistributedDataParallel whose gradients are those of this process."""

    def __init__(self, module: nn.Module) -> None:
        nn.Module.__init__(self)
        self.module = module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)

    def no_sync(self):
        return nullcontext()


class _World:
    """The functions of torch.distributed and detectron2 that the job needs, and what they have seen."""

    def __init__(self) -> None:
        self.seen: Counter = Counter()

    def check(self, kind: str, group: PretendGroup | None, *tensors: Tensor) -> None:
        self.seen[kind] += 1
        for tensor in tensors:
            if (group is None or group.backend == "nccl") != isinstance(tensor, PretendTensor):
                raise WrongCollective(f"{kind}: No backend type associated with device type {tensor.device.type}")
            if not tensor.is_contiguous():
                raise WrongCollective(f"{kind}: Tensors must be contiguous")

    def all_reduce(self, tensor: Tensor, op: Any = None, group: Any = None, async_op: bool = False) -> None:
        self.check("all_reduce", group, tensor)
        with torch.no_grad():
            if op in (None, distributed.ReduceOp.SUM):
                tensor.mul_(SIZE)

    def broadcast(self, tensor: Tensor, src: int = 0, group: Any = None, async_op: bool = False) -> None:
        self.check("broadcast", group, tensor)

    def reduce(self, tensor: Tensor, dst: int = 0, op: Any = None, group: Any = None, async_op: bool = False) -> None:
        self.all_reduce(tensor, op, group)

    def all_gather(self, tensors: list[Tensor], tensor: Tensor, group: Any = None, async_op: bool = False) -> None:
        self.check("all_gather", group, *tensors, tensor)
        for place in tensors:
            place.copy_(tensor)

    def gather_objects(self, value: Any, copies: int) -> list:
        self.seen["objects"] += 1
        if any(isinstance(leaf, PretendTensor) for leaf in tree_leaves(value)):
            raise WrongCollective(
                "a tensor of the device is pickled to be gathered: gather it by a collective of tensors"
            )
        return [value] * copies

    def functions(self) -> dict[str, Callable]:
        """Of torch.distributed."""
        return {
            "is_initialized": lambda: True,
            "get_world_size": lambda group=None: SIZE,
            "get_rank": lambda group=None: 0,
            "get_backend": lambda group=None: "nccl" if group is None else group.backend,
            "new_group": PretendGroup,
            "barrier": lambda *args, **kwargs: self.seen.update(["barrier"]),
            "all_reduce": self.all_reduce,
            "broadcast": self.broadcast,
            "reduce": self.reduce,
            "all_gather": self.all_gather,
        }


@contextmanager
def pretend_world() -> Iterator[Counter]:
    """Context in which this is process 0 of a job of two on NCCL; inside `pretend_device`. Gives the number of
    collectives so far by kind.
    """
    world = _World()
    with ExitStack() as stack:
        change = functools.partial(mock.patch.object)
        for name, function in world.functions().items():
            stack.enter_context(change(distributed, name, function))
        stack.enter_context(change(comm, "_LOCAL_PROCESS_GROUP", PretendGroup()))
        stack.enter_context(change(comm, "all_gather", lambda value, group=None: world.gather_objects(value, SIZE)))
        stack.enter_context(change(comm, "gather", lambda value, dst=0, group=None: world.gather_objects(value, 1)))
        stack.enter_context(change(defaults, "create_ddp_model", lambda model, **options: PretendDataParallel(model)))
        every = staticmethod(lambda total, size, rank: range(total if rank == 0 else 0))
        stack.enter_context(change(InferenceSampler, "_get_local_indices", every))
        yield world.seen
