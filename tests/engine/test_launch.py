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
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from detectron2.engine import default_argument_parser
from detectron2.utils import comm
from torch import distributed

from part_robust.engine import process_group
from part_robust.engine.launch import (
    LaunchError,
    _url,
    check_flags,
    first_host,
    job_device,
    place_from_environment,
    run_processes,
)
from part_robust.engine.process_group import Place, device_index, meet

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
    launch(main, default_argument_parser().parse_args(), device="cpu")
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
    workers = workers_of(job)
    os.kill(workers[1], signal.SIGKILL)
    text, _ = job.communicate(timeout=120)
    assert job.returncode == 1
    last = text.splitlines()[-1]
    assert "was ended by SIGKILL (out of memory?)" in last, text[-3000:]
    assert "--resume continues from the last checkpoint" in last
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


def workers_of(job: subprocess.Popen) -> list[int]:
    children = Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()
    return [int(pid) for pid in children if "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text()]


def wait_for(path: Path) -> None:
    deadline = time.time() + 200
    while not path.exists() and time.time() < deadline:
        time.sleep(0.2)
    assert path.exists()


def last_iteration(folder: Path) -> int:
    return int((folder / "last_checkpoint").read_text().removeprefix("model_").removesuffix(".pth"))


# Says that it is there, and does nothing that would notice the end of another process.
SLEEPER = """
import sys, time
from pathlib import Path
from detectron2.engine import default_argument_parser
from detectron2.utils import comm
from part_robust.engine import launch

def main(args):
    Path(args.opts[0], str(comm.get_rank())).touch()
    time.sleep(300)

if __name__ == "__main__":
    launch(main, default_argument_parser().parse_args(), device="cpu")
"""


@pytest.fixture
def sleeper(tmp_path) -> Path:
    (tmp_path / "sleeper.py").write_text(SLEEPER)
    return tmp_path / "sleeper.py"


def test_under_srun_a_process_that_dies_ends_the_job(sleeper, tmp_path):
    shared = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "2", "MASTER_PORT": str(free_port())}
    shared["SLURM_STEP_NODELIST"] = "127.0.0.1"
    tasks = [
        start(sys.executable, sleeper, tmp_path, SLURM_PROCID=str(rank), SLURM_LOCALID=str(rank), **shared)
        for rank in range(2)
    ]
    for rank in range(2):
        wait_for(tmp_path / str(rank))
    tasks[1].kill()
    began = time.monotonic()
    text, _ = tasks[0].communicate(timeout=60)
    assert time.monotonic() - began < 20
    assert tasks[0].returncode == 1
    assert "process 1 of the job is gone" in text.splitlines()[-1], text
    tasks[1].communicate()


def test_sigint_to_the_starting_process_ends_the_job(sleeper, tmp_path):
    job = start(sys.executable, sleeper, "--num-gpus", 2, tmp_path)
    for rank in range(2):
        wait_for(tmp_path / str(rank))
    workers = workers_of(job)
    job.send_signal(signal.SIGINT)
    text, _ = job.communicate(timeout=60)
    assert job.returncode == 128 + signal.SIGINT, text
    assert text.splitlines()[-1].startswith("Interrupted.") and "Traceback" not in text
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)


def _rank_1_meets_a_corrupt_image() -> None:
    if comm.get_rank() == 1:
        raise OSError("Caught OSError in DataLoader worker process 0.\nTraceback ...\nOSError: photo.jpg is truncated")
    comm.synchronize()


def test_the_last_line_of_a_job_is_the_reason_of_the_process_that_failed_first(capfd):
    with pytest.raises(SystemExit) as end:
        run_processes(_rank_1_meets_a_corrupt_image, (), 2)
    assert end.value.code == "process 1: OSError: photo.jpg is truncated"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--num-gpus", "0"], ["--num-gpus", "got 0", "MODEL.DEVICE cpu"]),
        (["--num-gpus", "-1"], ["--num-gpus", "got -1"]),
        (["--num-machines", "0"], ["--num-machines", "got 0"]),
        (["--num-machines", "2", "--machine-rank", "5"], ["--machine-rank must be 0..1", "got 5"]),
        (["--num-machines", "2"], ["--num-machines needs --dist-url tcp://HOST:PORT"]),
        (["--num-gpus", "2", "--dist-url", "http://a"], ["--dist-url", "got http://a"]),
    ],
)
def test_impossible_flags(flags, words):
    args = default_argument_parser().parse_args(flags)
    with pytest.raises(LaunchError) as error:
        check_flags(args), _url(args)
    assert all(word in str(error.value) for word in words)


def test_two_jobs_of_a_user_do_not_share_a_default_port():
    assert _url(default_argument_parser().parse_args(["--num-gpus", "2"])) == "auto"
    own = ["--num-gpus", "2", "--dist-url", "tcp://127.0.0.1:1234"]
    assert _url(default_argument_parser().parse_args(own)) == "tcp://127.0.0.1:1234"


def test_an_address_in_use_names_the_flag():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        place = Place(0, 2, 0, 2, f"127.0.0.1:{taken.getsockname()[1]}", "--num-gpus")
        with pytest.raises(LaunchError, match="in use by another job.*--dist-url"):
            meet(place, timedelta(seconds=5))


def test_who_is_awaited_is_said(capsys, monkeypatch):
    monkeypatch.setattr(process_group, "REMINDER", 0.3)
    address = f"127.0.0.1:{free_port()}"
    with pytest.raises(LaunchError, match="1 of 3 processes have come, process 1, 2 has not within 1 s"):
        meet(Place(0, 3, 0, 1, address, "--num-gpus"), timedelta(seconds=1))
    assert f"1 of 3 processes have come, process 1, 2 has not yet; waiting at {address}" in capsys.readouterr().err
    with pytest.raises(LaunchError, match="found no process 0 at .*--machine-rank 0.*same --dist-url"):
        meet(Place(1, 2, 0, 1, f"127.0.0.1:{free_port()}", "--num-gpus"), timedelta(seconds=1))


def test_cpu_jobs_communicate_by_gloo_on_a_machine_with_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    place = Place(0, 1, 0, 1, f"127.0.0.1:{free_port()}", "torchrun two on one GPU")
    monkeypatch.setattr(comm, "_LOCAL_PROCESS_GROUP", None)
    with monkeypatch.context() as patch:
        patch.setattr(process_group, "meet", lambda place, timeout: distributed.HashStore())
        with process_group.process_group(place, "cpu"):
            assert distributed.get_backend() == "gloo"
        distributed.destroy_process_group()


@pytest.mark.parametrize(
    ("started_by", "gpus", "index"),
    [("--num-gpus", 4, 3), ("Slurm", 8, 3), ("Slurm", 1, 0), ("torchrun", 1, None), ("--num-gpus", 0, None)],
)
def test_the_gpu_of_a_process(monkeypatch, started_by, gpus, index):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    place = Place(7, 8, 3, 4, "", started_by)
    if index is not None:
        assert device_index(place) == index
        return
    with pytest.raises(LaunchError, match=f"{started_by} started 4 processes on {gpus} GPUs.*MODEL.DEVICE cpu"):
        device_index(place)


def test_the_device_of_a_job_is_that_of_its_config():
    parse = default_argument_parser().parse_args
    config = str(ROOT / "configs/quick_schedules/resnet50_instant_test.yaml")
    assert job_device(parse(["--config-file", config])) == "cpu"
    assert job_device(parse(["--config-file", config, "MODEL.DEVICE", "cuda:1"])) == "cuda"


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
