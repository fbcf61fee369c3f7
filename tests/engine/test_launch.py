"""Several processes: as torchrun or Slurm starts them, as two machines, and when one of them fails or dies."""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from detectron2.engine import default_argument_parser
from detectron2.utils import comm
from torch import distributed
from torch.distributed import run
from torch.distributed.launcher.api import elastic_launch

from part_robust.data import PartDatasetMapper
from part_robust.engine import PartTrainer, launch, process_exit, process_group
from part_robust.engine.failures import SaveOnSignal
from part_robust.engine.launch import LaunchError, check_flags, choose_url, job_device, run_processes
from part_robust.engine.process_group import ProcessInfo, device_index, first_host, meet, process_from_environment
from tests.processes import Job, free_port, start_two, wait_until
from tests.toy import ADVERSARIAL, STEADY, run_cfg

ROOT = Path(__file__).resolve().parent.parent.parent
pytestmark = pytest.mark.usefixtures("jobs")

# Batch norm that learns sees its own share of the batch alone.
HEAD = ["MODEL.PART_CLASSIFIER.HEAD", "LinearHead"]


def train(folder: Path, iterations: int, *opts, resume: bool = False) -> None:
    settings = ["SOLVER.MAX_ITER", iterations, "SOLVER.CHECKPOINT_PERIOD", 2, *ADVERSARIAL, *STEADY, *HEAD, *opts]
    torch.manual_seed(0)
    trainer = PartTrainer(run_cfg(folder, "DATASETS.TEST", (), "DATASETS.VAL", (), *settings))
    trainer.resume_or_load(resume=resume)
    (folder / "begins_at").write_text(str(trainer.start_iter))
    trainer.train()


def torchrun(folder: Path, iterations: int) -> None:
    """Trains in two processes of torchrun's agent, which forks them where torchrun would start a script."""
    config, *_ = run.config_from_args(
        run.parse_args(["--nproc-per-node", "2", "--master-port", str(free_port()), "a_script.py"])
    )
    config.start_method = "fork"
    elastic_launch(config, _launched)(folder, iterations)


def _launched(folder: Path, iterations: int) -> None:
    launch(lambda args: train(folder, iterations), default_argument_parser().parse_args([]), device="cpu")


def weights(folder: Path) -> torch.Tensor:
    state = torch.load(folder / "model_final.pth", weights_only=True)["model"]
    return torch.cat([value.flatten().float() for value in state.values()])


def test_one_and_two_processes_give_the_same_weights(toy_data, tmp_path):
    """One process, two of torchrun, and two "machines" of one process each: same total batch, same images, same
    augmentation, same random starts, same mean over labelled pixels.
    """
    address = f"tcp://127.0.0.1:{free_port()}"
    machines = [
        Job(
            tmp_path / f"machine {rank}",
            *(run_processes, train, (tmp_path / "machines", 3), 1),
            machines=2,
            machine_rank=rank,
            url=address,
            start_method="fork",
        )
        for rank in range(2)
    ]
    train(tmp_path / "one", 3)
    for job in [*machines, Job(tmp_path / "torchrun's log", torchrun, tmp_path / "torchrun", 3)]:
        assert not any("Error" in line for line in job.end(0))
    one = weights(tmp_path / "one")
    for name in ("torchrun", "machines"):
        assert torch.allclose(weights(tmp_path / name), one, atol=2e-5), name
    losses = [
        [json.loads(line)["total_loss"] for line in (tmp_path / name / "metrics.json").read_text().splitlines()]
        for name in ("one", "torchrun")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3), "the mean over processes is written"


def test_a_backbone_that_is_frozen_at_first_learns_in_several_processes_too(toy_data, tmp_path):
    options = [4, "SOLVER.BACKBONE_FREEZE_ITERS", 2, "SOLVER.ACCUMULATE", 2]
    train(tmp_path / "one", *options)
    start_two(train, (tmp_path / "two", *options))
    assert torch.allclose(weights(tmp_path / "one"), weights(tmp_path / "two"), atol=2e-5)
    early, late = (torch.load(tmp_path / "two" / name)["model"] for name in ("model_0000001.pth", "model_final.pth"))
    assert not torch.equal(early["backbone.stem.conv1.weight"], late["backbone.stem.conv1.weight"])


def _resume(folder: Path) -> None:
    train(folder, 100000, resume=True)


def test_a_killed_process_ends_the_job_which_can_be_resumed(toy_data, tmp_path):
    """And SIGTERM to the starting process reaches all of them."""
    job = Job(tmp_path / "first", start_two, _resume, (tmp_path,))
    wait_until(lambda: (tmp_path / "last_checkpoint").exists())
    os.kill(job.children()[1], signal.SIGKILL)
    last = job.end(1)[-1]
    assert "was ended by SIGKILL (out of memory?)" in last and "--resume continues from the last checkpoint" in last
    reached = last_iteration(tmp_path)

    job = Job(tmp_path / "second", start_two, _resume, (tmp_path,))
    wait_until(lambda: last_iteration(tmp_path) != reached)
    os.kill(job.process.pid, signal.SIGTERM)
    text = "\n".join(job.end(128 + signal.SIGTERM))
    assert (tmp_path / "begins_at").read_text() == str(reached + 1) and "is gone" not in text
    assert torch.load(tmp_path / (tmp_path / "last_checkpoint").read_text(), weights_only=True)


def last_iteration(folder: Path) -> int:
    return int((folder / "last_checkpoint").read_text().removeprefix("model_").removesuffix(".pth"))


def _sleep(folder: Path) -> None:
    """Does nothing that would notice the end of another process."""
    (folder / str(comm.get_rank())).touch()
    time.sleep(300)


def _all_sleep(folder: Path, number: int = 2) -> None:
    wait_until(lambda: all((folder / str(rank)).exists() for rank in range(number)))


def _work(args: argparse.Namespace) -> None:
    """Rank 1 fails where MODEL.WEIGHTS says so, after all have begun; otherwise everything sleeps."""
    folder = Path(args.opts[1])
    if args.resume and comm.get_rank() == 1:
        (folder / "1").touch()
        _all_sleep(folder)
        raise FileNotFoundError("no weights here")
    _sleep(folder)


def srun(folder: Path, number: int, *flags: str) -> list[Job]:
    """Tasks as Slurm starts them: plain processes that know their places."""
    shared = {"SLURM_STEP_NUM_TASKS": f"{number}", "SLURM_STEP_TASKS_PER_NODE": f"{number}"}
    shared |= {"MASTER_PORT": f"{free_port()}", "SLURM_STEP_NODELIST": "127.0.0.1"}
    args = default_argument_parser().parse_args([*flags, "OUTPUT_DIR", str(folder)])
    return [
        Job(
            folder / f"task {rank}",
            *(launch, _work, args, "cpu"),
            environment=shared | {"SLURM_PROCID": f"{rank}", "SLURM_LOCALID": f"{rank}"},
        )
        for rank in range(number)
    ]


def test_under_srun_a_process_that_dies_ends_the_job(tmp_path):
    tasks = srun(tmp_path, 3)
    _all_sleep(tmp_path, 3)
    tasks[1].process.kill()
    for rank in (0, 2):
        assert "process 1 of the job is gone" in tasks[rank].end(1, seconds=20)[-1]


def test_under_srun_every_process_ends_with_the_reason_of_the_one_that_failed(tmp_path):
    for task in srun(tmp_path, 3, "--resume"):
        assert task.end(1, seconds=20) == ["process 1: FileNotFoundError: no weights here"]


@pytest.mark.parametrize("to_all", [False, True])
def test_sigint_ends_the_job(tmp_path, to_all):
    """From Ctrl-C, which all processes get, and to the starting process alone."""
    job = Job(tmp_path / "log", start_two, _sleep, (tmp_path,))
    _all_sleep(tmp_path)
    workers = job.children()
    os.kill(-job.process.pid if to_all else job.process.pid, signal.SIGINT)
    lines = job.end(128 + signal.SIGINT, seconds=20)
    assert lines[-1].startswith("Interrupted.") and not any("Traceback" in line or "gone" in line for line in lines)
    assert len(workers) == 2 and not any(Path(f"/proc/{pid}").exists() for pid in workers)


def test_a_job_that_is_ended_before_it_has_saved_anything_has_the_code_of_its_signal(tmp_path):
    job = Job(tmp_path / "log", start_two, _sleep, (tmp_path,))
    _all_sleep(tmp_path)
    os.kill(job.process.pid, signal.SIGTERM)
    assert not any("Traceback" in line for line in job.end(128 + signal.SIGTERM, seconds=20))


def _end_at_different_times() -> None:
    """Rank 0 writes its files after the other has nothing left to do."""
    comm.synchronize()
    hook = SaveOnSignal(None)
    hook.received = signal.SIGTERM
    try:
        raise process_group.Preempted(128 + hook.received)
    finally:
        if comm.is_main_process():
            time.sleep(0.5)


def test_preempted_processes_wait_for_one_another(tmp_path):
    lines = Job(tmp_path / "log", start_two, _end_at_different_times, ()).end(128 + signal.SIGTERM)
    assert not any("gone" in line for line in lines)


def _rank_1_meets_a_corrupt_image(folder: Path) -> None:
    opts = ["DATASETS.TEST", (), "DATASETS.VAL", (), "DATALOADER.NUM_WORKERS", 1, *STEADY]
    trainer = PartTrainer(run_cfg(folder, *opts, model="resnet"))
    if comm.get_rank() == 1:
        mapper = PartDatasetMapper(trainer.cfg, is_train=False, dataset_name="toy_val")
        (folder / "bad.png").write_bytes(b"not an image")
        record = {"file_name": str(folder / "bad.png"), "image_id": 3}
        next(iter(torch.utils.data.DataLoader([record], num_workers=1, collate_fn=lambda x: mapper(x[0]))))
    trainer.train()


def test_the_last_line_of_a_job_is_the_reason_of_the_process_that_failed_first(toy_data, tmp_path):
    lines = Job(tmp_path / "log", start_two, _rank_1_meets_a_corrupt_image, (tmp_path,)).end(1)
    assert lines[-1].startswith(
        f"process 1: UnreadableImage: image {tmp_path}/bad.png (image_id 3): cannot identify image"
    )
    assert not any("Traceback" in line for line in lines), "what a user can fix is a sentence"


def _rank_0_has_a_bug() -> None:
    if comm.is_main_process():
        raise ZeroDivisionError("the bug")
    comm.synchronize()


def test_a_bug_has_a_traceback_and_the_last_line(tmp_path):
    lines = Job(tmp_path / "log", start_two, _rank_0_has_a_bug, ()).end(1)
    assert lines[-1] == "process 0: ZeroDivisionError: the bug"
    assert sum("Traceback" in line for line in lines) == 1, "not of the process that lost the other one"


def _rank_1_is_killed_and_rank_0_notices_a_broken_connection() -> None:
    process_exit.GRACE = 0.0
    if comm.get_rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    raise distributed.DistBackendError("gloo: Connection reset by peer")


def test_a_killed_process_explains_more_than_the_broken_connection_to_it(tmp_path):
    lines = Job(tmp_path / "log", start_two, _rank_1_is_killed_and_rank_0_notices_a_broken_connection, ()).end(1)
    assert "was ended by SIGKILL (out of memory?)" in lines[-1]


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
        check_flags(args), choose_url(args)
    assert all(word in str(error.value) for word in words)


def test_two_jobs_of_a_user_do_not_share_a_default_port():
    assert choose_url(default_argument_parser().parse_args(["--num-gpus", "2"])) == "auto"
    own = ["--num-gpus", "2", "--dist-url", "tcp://127.0.0.1:1234"]
    assert choose_url(default_argument_parser().parse_args(own)) == "tcp://127.0.0.1:1234"


def test_an_address_in_use_names_the_flag():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        place = ProcessInfo(0, 2, 0, 2, f"127.0.0.1:{taken.getsockname()[1]}", "--num-gpus")
        with pytest.raises(LaunchError, match="in use by another job.*--dist-url"):
            meet(place, timedelta(seconds=5))


def test_who_is_awaited_is_said(capsys, monkeypatch):
    monkeypatch.setattr(process_group, "REMINDER", 0.3)
    address = f"127.0.0.1:{free_port()}"
    with pytest.raises(LaunchError, match="1 of 3 processes have come, process 1, 2 has not within 1 s"):
        meet(ProcessInfo(0, 3, 0, 1, address, "--num-gpus"), timedelta(seconds=1))
    assert f"1 of 3 processes have come, process 1, 2 has not yet; waiting at {address}" in capsys.readouterr().err
    with pytest.raises(LaunchError, match="found no process 0 at .*--machine-rank 0.*same --dist-url"):
        meet(ProcessInfo(1, 2, 0, 1, f"127.0.0.1:{free_port()}", "--num-gpus"), timedelta(seconds=1))


def test_cpu_jobs_communicate_by_gloo_on_a_machine_with_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    place = ProcessInfo(0, 1, 0, 1, f"127.0.0.1:{free_port()}", "torchrun two on one GPU")
    monkeypatch.setattr(comm, "_LOCAL_PROCESS_GROUP", None)
    with monkeypatch.context() as patch:
        patch.setattr(process_group, "meet", lambda info, timeout: distributed.HashStore())
        with process_group.process_group(place, "cpu"):
            assert distributed.get_backend() == "gloo"
    assert not distributed.is_initialized()


@pytest.mark.parametrize(
    ("started_by", "gpus", "index"),
    [("--num-gpus", 4, 3), ("Slurm", 8, 3), ("Slurm", 1, 0), ("torchrun", 1, None), ("--num-gpus", 0, None)],
)
def test_the_gpu_of_a_process(monkeypatch, started_by, gpus, index):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    place = ProcessInfo(7, 8, 3, 4, "", started_by)
    if index is not None:
        assert device_index(place) == index
        return
    with pytest.raises(LaunchError, match=f"{started_by} started 4 processes on {gpus} GPUs.*MODEL.DEVICE cpu"):
        device_index(place)


def test_the_device_of_a_job_is_that_of_its_config():
    parse = default_argument_parser().parse_args
    config = str(ROOT / "configs/quick_schedules/resnet50_instant_test.yaml")
    assert job_device(parse(["--config-file", config])) == "cpu"
    assert job_device(parse(["--config-file", config, "MODEL.DEVICE", "cuda"])) == "cuda"
    with pytest.raises(LaunchError, match=r"MODEL\.DEVICE must be cuda or cpu .*got cuda:1"):
        job_device(parse(["--config-file", config, "MODEL.DEVICE", "cuda:1"]))


def arguments(gpus: int = 1, machines: int = 1) -> argparse.Namespace:
    return argparse.Namespace(num_gpus=gpus, num_machines=machines)


def test_torchrun_s_variables():
    given = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
    given |= {"MASTER_ADDR": "a", "MASTER_PORT": "1"}
    place = process_from_environment(given, arguments())
    assert (place.rank, place.world_size, place.local_rank, place.local_size) == (5, 8, 1, 4)
    with pytest.raises(LaunchError, match="torchrun starts the processes"):
        process_from_environment(given, arguments(gpus=2))
    assert process_from_environment(given | {"WORLD_SIZE": "1", "RANK": "0"}, arguments()) is None
    assert process_from_environment({}, arguments()) is None


def test_slurm_s_variables():
    given = {"SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_STEP_NUM_TASKS": "8", "SLURM_JOB_ID": "1234567"}
    given |= {"SLURM_STEP_TASKS_PER_NODE": "4(x2)", "SLURM_STEP_NODELIST": "gpu[03-04]"}
    place = process_from_environment(given, arguments())
    assert (place.rank, place.world_size, place.local_rank, place.local_size) == (5, 8, 1, 4)
    assert place.address.startswith("gpu03:") and 20000 <= int(place.address.split(":")[1]) < 40000
    assert process_from_environment(given | {"MASTER_ADDR": "x", "MASTER_PORT": "9"}, arguments()).address == "x:9"
    # One task that starts its node's processes itself, and the script of sbatch, where srun's variables lack.
    assert process_from_environment(given, arguments(gpus=8)) is None
    assert process_from_environment({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}, arguments()) is None
    with pytest.raises(LaunchError, match="same number on each"):
        process_from_environment(given | {"SLURM_STEP_TASKS_PER_NODE": "4,3"}, arguments())


@pytest.mark.parametrize(
    ("nodes", "host"),
    [("gpu[03-05,9],cpu1", "gpu03"), ("node1,node2", "node1"), ("a-b-7", "a-b-7"), ("n[1,4]x", "n1x")],
)
def test_first_host(nodes, host):
    assert first_host(nodes) == host
