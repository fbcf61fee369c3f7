"""Exponential moving average of the weights; robust overfitting is weaker in it (Rebuffi et al., 2021)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from detectron2.engine import HookBase
from torch import Tensor, nn


class WeightAverage:
    """Average of everything that a model's checkpoint holds: parameters and batch norm statistics; counters are copied.

    The decay grows with the number of updates n as min(decay, (1 + n) / (10 + n)), or the random start would weigh on
    the average for thousands of steps.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        """Start the average from the model's weights.

        Args:
            model: not wrapped.
            decay: 0..1, not 1.

        Raises:
            ValueError: another decay.
        """
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"SOLVER.EMA.DECAY must lie in 0..1 and not be 1, is {decay}")
        self.model = model
        self.decay = decay
        self.updates = 0
        self.values = {name: value.detach().clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def reset(self) -> None:
        """Begins anew at the model's weights."""
        self.updates = 0
        for name, value in self.model.state_dict().items():
            self.values[name].copy_(value)

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the model's weights, further in the first steps."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        state = self.model.state_dict()
        floats = [name for name, value in self.values.items() if value.is_floating_point()]
        averages, latest = [self.values[name] for name in floats], [state[name] for name in floats]
        torch._foreach_lerp_(averages, latest, 1.0 - decay)
        for name in self.values.keys() - set(floats):
            self.values[name].copy_(state[name])

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The model has the average as its weights; afterwards, also after an error, it has its own again."""
        state = self.model.state_dict()
        own = {name: value.clone() for name, value in state.items()}
        try:
            _copy(self.values, state)
            yield
        finally:
            _copy(own, state)

    def state_dict(self) -> dict:
        """Return what a checkpoint keeps."""
        return {"updates": self.updates, "model": self.values}

    def load_state_dict(self, state: dict) -> None:
        """Continue from what a checkpoint has kept."""
        self.updates = int(state["updates"])
        _copy(state["model"], self.values)


class AverageWeights(HookBase):
    """Updates the average after every step."""

    def __init__(self, average: WeightAverage) -> None:
        self.average = average

    def before_train(self) -> None:
        if self.trainer.start_iter == 0:
            self.average.reset()  # at the weights that MODEL.WEIGHTS gave

    def after_step(self) -> None:
        self.average.update()


@torch.no_grad()
def _copy(source: dict[str, Tensor], target: dict[str, Tensor]) -> None:
    for name, value in target.items():
        value.copy_(source[name])
