"""Several processes: as torchrun starts them, as two machines, and when one of them dies."""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from part_robust.engine.launch import LaunchError, first_host, place_from_environment

ROOT = Path(__file__).resolve().parent.parent.parent

SCRIPT = """
import sys, torch
from pathlib import Path
from detectron2.engine import default_argument_parser
from part_robust.data import register_part_dataset
from part_robust.engine import PartTrainer, end_process_group, launch
from tests.engine.test_step import STEADY
from tests.engine.test_trainer import ADVERSARIAL, run_cfg

def main(args):
    torch.set_num_threads(1)
    for name in ("toy_train", "toy_val"):
        register_part_dataset(name, JSON, IMAGES)
    folder, iterations, *opts = args.opts
    opts = ["SOLVER.MAX_ITER", int(iterations), "SOLVER.CHECKPOINT_PERIOD", 2, *ADVERSARIAL, *STEADY, *opts]
    torch.manual_seed(0)
    trainer = PartTrainer(run_cfg(Path(folder), "DATASETS.TEST", (), "DATASETS.VAL", (), *opts))
    trainer.resume_or_load(resume=args.resume)
    trainer.train()
    end_process_group()

if __name__ == "__main__":
    launch(main, default_argument_parser().parse_args())
"""
# Batch norm that learns sees its own share of the batch alone.
HEAD = ["MODEL.PART_CLASSIFIER.HEAD", "LinearHead"]


@pytest.fixture(scope="module")
def script(toy_data, tmp_path_factory) -> Path:
    json_file, images = toy_data
    path = tmp_path_factory.mktemp("script") / "run.py"
    path.write_text(SCRIPT.replace("JSON", repr(str(json_file))).replace("IMAGES", repr(str(images))))
    return path


def start(*command, **more) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **more}
    return subprocess.Popen(
        [str(part) for part in command], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finished(*processes: subprocess.Popen) -> str:
    texts = [process.communicate(timeout=300)[0] for process in processes]
    for process, text in zip(processes, texts, strict=True):
        assert process.returncode == 0, text[-3000:]
    return "\n".join(texts)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def weights(folder: Path) -> torch.Tensor:
    state = torch.load(folder / "model_final.pth", weights_only=True)["model"]
    return torch.cat([value.flatten().float() for value in state.values()])


def test_one_and_two_processes_give_the_same_weights(script, tmp_path):
    """One process, two of torchrun, and two "machines" of one process each: same total batch, same images, same
    augmentation, same random starts, same mean over labelled pixels."""
    finished(start(sys.executable, script, tmp_path / "one", 3, *HEAD))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", 2, "--master-port", free_port()]
    text = finished(start(*torchrun, script, tmp_path / "torchrun", 3, *HEAD))
    assert "Error" not in text
    url = f"tcp://127.0.0.1:{free_port()}"
    machines = [
        start(
            *(sys.executable, script, "--num-machines", 2, "--machine-rank", rank, "--dist-url", url),
            *(tmp_path / "machines", 3, *HEAD),
        )
        for rank in range(2)
    ]
    finished(*machines)
    one = weights(tmp_path / "one")
    for name in ("torchrun", "machines"):
        assert torch.allclose(weights(tmp_path / name), one, atol=2e-5), name
    losses = [
        [json.loads(line)["total_loss"] for line in (tmp_path / name / "metrics.json").read_text().splitlines()]
        for name in ("one", "torchrun")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3), "the mean over processes is written"


def test_a_backbone_that_is_frozen_at_first_learns_in_several_processes_too(script, tmp_path):
    options = [4, *HEAD, "SOLVER.BACKBONE_FREEZE_ITERS", 2, "SOLVER.ACCUMULATE", 2]
    finished(start(sys.executable, script, tmp_path / "one", *options))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", 2, "--master-port", free_port()]
    finished(start(*torchrun, script, tmp_path / "two", *options))
    assert torch.allclose(weights(tmp_path / "one"), weights(tmp_path / "two"), atol=2e-5)
    early, late = (torch.load(tmp_path / "two" / name)["model"] for name in ("model_0000001.pth", "model_final.pth"))
    assert not torch.equal(early["backbone.stem.conv1.weight"], late["backbone.stem.conv1.weight"])


def test_a_killed_process_ends_the_job_which_can_be_resumed(script, tmp_path):
    """And SIGTERM to the starting process reaches all of them."""
    command = [sys.executable, script, "--num-gpus", 2, "--resume", tmp_path]
    job = start(*command, 100000, *HEAD)
    wait_for(tmp_path / "last_checkpoint")
    children = Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()
    workers = [int(pid) for pid in children if "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text()]
    os.kill(workers[1], signal.SIGKILL)
    text, _ = job.communicate(timeout=120)
    assert job.returncode == 1
    assert "was ended by SIGKILL (out of memory?)" in text or "another process of the job is gone" in text, text[-3000:]
    assert "--resume goes on from the last checkpoint" in text
    reached = last_iteration(tmp_path)

    job = start(*command, 100000, *HEAD)
    deadline = time.time() + 200
    while last_iteration(tmp_path) == reached and time.time() < deadline:
        time.sleep(0.2)
    job.send_signal(signal.SIGTERM)
    text, _ = job.communicate(timeout=120)
    assert job.returncode == 128 + signal.SIGTERM, text[-3000:]
    assert f"Starting training from iteration {reached + 1}" in text
    assert "SIGTERM: saved model_" in text
    assert torch.load(tmp_path / (tmp_path / "last_checkpoint").read_text(), weights_only=True)


def wait_for(path: Path) -> None:
    deadline = time.time() + 200
    while not path.exists() and time.time() < deadline:
        time.sleep(0.2)
    assert path.exists()


def last_iteration(folder: Path) -> int:
    return int((folder / "last_checkpoint").read_text().removeprefix("model_").removesuffix(".pth"))


def arguments(gpus: int = 1, machines: int = 1) -> argparse.Namespace:
    return argparse.Namespace(num_gpus=gpus, num_machines=machines)


def test_torchrun_s_variables():
    given = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
    given |= {"MASTER_ADDR": "a", "MASTER_PORT": "1"}
    place = place_from_environment(given, arguments())
    assert (place.rank, place.world_size, place.local_rank, place.local_size) == (5, 8, 1, 4)
    with pytest.raises(LaunchError, match="torchrun starts the processes"):
        place_from_environment(given, arguments(gpus=2))
    assert place_from_environment(given | {"WORLD_SIZE": "1", "RANK": "0"}, arguments()) is None
    assert place_from_environment({}, arguments()) is None


def test_slurm_s_variables():
    given = {"SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_STEP_NUM_TASKS": "8", "SLURM_JOB_ID": "1234567"}
    given |= {"SLURM_STEP_TASKS_PER_NODE": "4(x2)", "SLURM_STEP_NODELIST": "gpu[03-04]"}
    place = place_from_environment(given, arguments())
    assert (place.rank, place.world_size, place.local_rank, place.local_size) == (5, 8, 1, 4)
    assert place.address.startswith("gpu03:") and 20000 <= int(place.address.split(":")[1]) < 40000
    assert place_from_environment(given | {"MASTER_ADDR": "x", "MASTER_PORT": "9"}, arguments()).address == "x:9"
    # One task that starts its node's processes itself, and the script of sbatch, where srun's variables lack.
    assert place_from_environment(given, arguments(gpus=8)) is None
    assert place_from_environment({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}, arguments()) is None
    with pytest.raises(LaunchError, match="same number on each"):
        place_from_environment(given | {"SLURM_STEP_TASKS_PER_NODE": "4,3"}, arguments())


@pytest.mark.parametrize(
    ("nodes", "host"),
    [("gpu[03-05,9],cpu1", "gpu03"), ("node1,node2", "node1"), ("a-b-7", "a-b-7"), ("n[1,4]x", "n1x")],
)
def test_first_host(nodes, host):
    assert first_host(nodes) == host
