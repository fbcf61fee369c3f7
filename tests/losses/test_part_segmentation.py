"""The loss mean is over the whole job, however its pixels are spread over processes."""

from __future__ import annotations

import torch
from detectron2.utils import comm

from part_robust.losses.part_segmentation import part_cross_entropy
from tests.processes import start_two


def make():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 3, 5, 5, generator=generator)
    target = torch.randint(0, 3, (4, 5, 5), generator=generator)
    target[2:, 1:] = 255  # the second half has far fewer labelled pixels
    return logits, target


def _worker(path: str) -> None:
    logits, target = make()
    half = slice(2 * comm.get_rank(), 2 * comm.get_rank() + 2)
    loss = part_cross_entropy(logits[half], target[half], 255)
    losses = comm.all_gather(float(loss))
    if comm.is_main_process():
        torch.save(losses, path)


def test_two_processes_average_to_the_whole_batch(tmp_path):
    path = str(tmp_path / "losses.pt")
    start_two(_worker, (path,))
    logits, target = make()
    whole = float(part_cross_entropy(logits, target, 255))
    assert abs(sum(torch.load(path)) / 2 - whole) < 1e-6
