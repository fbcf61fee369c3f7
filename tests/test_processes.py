"""Waiting for a process that works longer than a collective may take."""

from __future__ import annotations

import time
from datetime import timedelta

from detectron2.utils import comm

from part_robust.utils.processes import prepare_to_wait, wait_for_all
from tests.processes import start_two

SHORT = timedelta(seconds=2)


def _rank_0_works_longer_than_a_collective_may_take(path: str) -> None:
    prepare_to_wait()
    if comm.is_main_process():
        time.sleep(SHORT.total_seconds() + 1)
    wait_for_all()
    with open(f"{path}/{comm.get_rank()}", "w"):
        pass
    wait_for_all()


def test_others_wait_for_the_main_process(tmp_path):
    start_two(_rank_0_works_longer_than_a_collective_may_take, (str(tmp_path),), timeout=SHORT)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1"]
    wait_for_all()  # alone there is nothing to wait for
