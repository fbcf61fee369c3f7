"""Runs with several seeds: where they lie, what the tables make of them, and what a seed changes."""

from __future__ import annotations

import csv
import itertools
import json
import statistics
from pathlib import Path

import pytest
import torch
from detectron2.utils.env import seed_all_rng

from part_robust.cli import reproduce
from part_robust.engine import PartTrainer
from part_robust.engine.setup import evaluate
from part_robust.runs.run import Run
from part_robust.runs.suites import suite_runs, table_runs
from part_robust.runs.tables import Tables
from tests.commands import ROOT
from tests.runs.records import accuracies
from tests.toy import QUIET, run_cfg, save_run

SEEDS = (0, 1, 2)


@pytest.fixture(autouse=True)
def here(monkeypatch):
    monkeypatch.chdir(ROOT)


def by_cells(text: str) -> dict[tuple[str, ...], list[str]]:
    """Rows of Markdown tables by model and training."""
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    return {(row[0], row[2]): row[3:] for row in rows}


@pytest.mark.parametrize("folder", ["", "out"])
@pytest.mark.parametrize(
    ("name", "leaf"),
    [("part_shapes_small", "resnet50"), ("part_shapes_recipes", "dino_sequential"), ("thesis_3", "deeplab_two_headed")],
)
def test_every_seed_has_its_folders_and_todays_seed_those_of_today(name, leaf, folder):
    today = suite_runs(name, [leaf], folder=folder)
    runs = suite_runs(name, [leaf], folder=folder, seeds=SEEDS)
    assert [run.seed for run in runs] == [seed for seed in SEEDS for _ in today], "one seed after the other"
    of_seed = {seed: [run for run in runs if run.seed == seed] for seed in SEEDS}
    assert [run.output for run in of_seed[0]] == [run.output for run in today]
    assert [run.config.dump() for run in of_seed[0][:2]] == [run.config.dump() for run in today[:2]], "the same runs"
    outputs = {run.output for run in runs}
    assert len(outputs) == len(runs)
    for run, plain in zip(of_seed[2], today, strict=True):
        assert run.output == plain.output.parent / "seed_2" / plain.output.name
        assert run.config.SEED == 2 and (run.leaf, run.cells, run.table) == (plain.leaf, plain.cells, plain.table)
        if run.cells[2] == "adversarial":
            assert run.after in outputs and run.after.parent.name == "seed_2"


def records_of(monkeypatch, found: dict[tuple[str, int], dict]) -> None:
    monkeypatch.setattr(Run, "record", lambda run: found.get((Path(run.config_file).stem, run.seed)))


def test_means_deviations_and_paired_differences(monkeypatch, tmp_path):
    baseline, parts = {0: 30.0, 1: 34.0, 2: 35.0}, {0: 40.0, 1: 41.0}
    found = {("resnet50_adv", seed): accuracies(70.0, value) for seed, value in baseline.items()}
    found |= {("deeplab_two_headed_adv", seed): accuracies(75.0, value, 60.0 + seed) for seed, value in parts.items()}
    records_of(monkeypatch, found)
    tables = Tables(suite_runs("part_shapes_small", seeds=SEEDS), tmp_path, "tables", of_thesis=True)
    tables.write()
    text = tables.markdown.read_text()
    means, differing = text.split("## All runs of part_shapes_deeplab")[1].split("Differences paired by seed")
    assert "Mean ± sample standard deviation over seeds 0, 1, 2." in means
    title = means[means.index("| model") :].split("\n")[0]
    assert [cell.strip() for cell in title.split("|")][4:7] == ["seeds", "acc., clean", "acc., pgd20"]
    rows = by_cells(means)
    assert rows["ResNet, no parts", "adversarial"][:3] == ["3", "70.0 ± 0.0", "33.0 ± 2.6"]
    assert rows["Two-Headed", "adversarial"][:3] == ["2 of 3", "75.0 ± 0.0", "40.5 ± 0.7"]
    # 40 - 30 and 41 - 34: the third seed of the baseline has no partner.
    assert by_cells(differing)["Two-Headed", "adversarial"][:4] == [
        *("ResNet, no parts, none, adversarial", "2"),
        *("+5.0 ± 0.0", "+8.5 ± 2.1"),
    ]
    assert "- Two-Headed, masks, adversarial: no result of seed 2, so n = 2" in text
    assert "- Two-Headed, masks, adversarial, seed 1: beware" in text
    # The thesis's layout, too.
    thesis = text.split("## Table 3.1")[1].split("## ")[0]
    lines = {line.split("|")[1].strip(): line for line in thesis.splitlines() if line.startswith("|")}
    assert "| 3 " in thesis and "33.0 ± 2.6 (11.6)" in thesis and "40.5 ± 0.7 (18.4)" in thesis
    assert "+8.5 ± 2.1" in lines["Two-Headed DeepLabv3+"] and "no result of seed 2" in thesis

    def cells(name: str, model: str) -> dict[str, str]:
        with (tmp_path / f"{name}.csv").open() as file:
            return next(row for row in csv.DictReader(file) if row["model"] == model)

    row = cells("part_shapes_deeplab", "ResNet, no parts")
    deviation = statistics.stdev(baseline.values())
    assert [float(row[f"acc., pgd20 ({what})"]) for what in ("mean", "sample sd", "n")] == [33, round(deviation, 4), 3]
    row = cells("part_shapes_deeplab_differences", "Two-Headed")
    assert row["less"].startswith("ResNet") and (row["acc., pgd20 (mean)"], row["acc., pgd20 (n)"]) == ("8.5", "2")
    row = cells("table_3.1", "Two-Headed DeepLabv3+")
    title = "adv. trained, adv. images: acc. (ours on PartShapes, {})"
    assert [row[title.format(what)] for what in ("mean", "sample sd", "n")] == ["40.5", "0.71", "2"]


def test_a_table_without_the_baseline_is_compared_with_its_first_row(monkeypatch, tmp_path):
    values = {"dino_detector": 10.0, "dino_sequential": 12.0}
    records_of(
        monkeypatch,
        {(leaf, seed): accuracies(value + seed**2, 1.0) for leaf, value in values.items() for seed in SEEDS},
    )
    tables = Tables(table_runs("part_shapes_dino", seeds=SEEDS), tmp_path, "dino")
    tables.write()
    rows = by_cells(tables.markdown.read_text().split("Differences paired by seed")[1])
    assert rows["DINO sequential", "clean"][:3] == ["DINO, parts only, boxes, clean", "3", "+2.0 ± 0.0"]
    assert ("DINO, parts only", "clean") not in rows


def test_the_tool_shows_the_seeds_and_refuses_wrong_ones(tmp_path, capsys, monkeypatch):
    words = ["--suite", "part_shapes_small", "--only", "resnet50", "--output", str(tmp_path)]
    assert reproduce.main([*words, "--seeds", "0,2", "--dry-run"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert f"| resnet50_adv, seed 2 | to do | {tmp_path}/seed_2/resnet50_adv |" in text and "4 runs, 0 finished" in text
    for seeds, sentence in (("0,x", "whole numbers"), ("0,0", "different"), ("-1", "different"), ("", "SEED out")):
        with pytest.raises(SystemExit):
            reproduce.main([*words, f"--seeds={seeds or 1}", *(["SEED", "3"] if not seeds else [])])
        assert sentence in capsys.readouterr().err


def test_what_a_seed_changes_in_a_training(toy_data, tmp_path):
    """The weights that it begins with, the order of the data, and the random starts of its attacks."""

    def prepare(seed: int) -> PartTrainer:
        cfg = run_cfg(tmp_path / f"seed_{seed}", *QUIET, "SEED", seed, model="resnet")
        seed_all_rng(cfg.SEED)  # as `setup` does
        return PartTrainer(cfg)

    one, same, other = prepare(1), prepare(1), prepare(2)
    assert torch.equal(one.model.backbone.res5[0].conv1.weight, same.model.backbone.res5[0].conv1.weight)
    assert not torch.equal(one.model.backbone.res5[0].conv1.weight, other.model.backbone.res5[0].conv1.weight)

    def next_ids(trainer: PartTrainer) -> list[int]:
        batches = itertools.islice(trainer.data_loader.loader, 3)
        return [item["image_id"] for batch in batches for item in batch]

    ids = next_ids(one)
    assert ids == next_ids(same) and ids != next_ids(other)
    batch = next(iter(one.data_loader.loader))
    other.model.load_state_dict(one.model.state_dict())
    first, again, second = (
        torch.stack([item["image"] for item in trainer.data_loader.attack_batch(batch)])
        for trainer in (one, same, other)
    )
    assert torch.equal(first, again) and not torch.equal(first, second)


def test_a_seed_does_not_change_an_evaluation(toy_data, tmp_path):
    """Neither the images, nor what the attacks make of them."""
    save_run(tmp_path / "trained", "deeplab_two_headed")
    results = []
    for seed in (1, 2):
        folder = tmp_path / f"evaluated_{seed}"
        opts = ["MODEL.WEIGHTS", str(tmp_path / "trained" / "model_best.pth"), "TEST.NUM_IMAGES", 5]
        cfg = run_cfg(folder, *opts, "SEED", seed, "ATTACK.EVAL", ["pgd20", "noise"], "ATTACK.SPECS.pgd20.STEPS", 2)
        seed_all_rng(cfg.SEED)
        evaluate(cfg)
        results.append(json.loads((folder / "robustness.json").read_text())["results"])
    assert results[0] == results[1] and any("pgd20" in task for task in results[0]["toy_val"])
