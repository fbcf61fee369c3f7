"""The tool behind the tables: which runs, in which order, and what becomes of their records."""

from __future__ import annotations

import csv
import importlib
from pathlib import Path

import pytest

from part_robust.attacks import build_attack
from part_robust.config import attack_spec, get_part_robust_cfg
from part_robust.runs.run import Run
from tests.commands import ROOT, call
from tests.data.builtin_names import builtin_below
from tests.runs.records import accuracies


@pytest.fixture
def tool(monkeypatch):
    """Modules behind the tool, by name."""
    monkeypatch.chdir(ROOT)
    return lambda name: importlib.import_module(f"part_robust.{name}")


def test_every_run_has_a_config_and_comes_after_the_one_it_needs(tool):
    suites = tool("runs.suites")
    everything = [suites.table_runs(table) for table in suites.TABLES] + [suites.suite_runs(s) for s in suites.SUITES]
    for runs in everything:
        made = set()
        for run in runs:
            cfg = get_part_robust_cfg(ROOT / run.config_file, run.opts)
            _, supervision, training = run.cells
            assert cfg.ATTACK.TRAIN.ENABLED == (training == "adversarial")
            assert (cfg.INPUT.PART_MASKS == "boxes") == (supervision == "boxes")
            if training == "adversarial":
                assert str(Path(cfg.MODEL.WEIGHTS).parent) in made
            radii = [attack_spec(cfg, attack).EPS for attack in cfg.ATTACK.EVAL]
            photographs = run.table.startswith(("car_parts", "plants"))
            assert radii == ([2.0, 4.0, 8.0] if photographs else [8.0] * len(radii))
            made.add(str(Path(cfg.OUTPUT_DIR)))
        assert len(made) == len(runs)
    # Five DeepLab variants under two kinds of supervision and the baseline, each trained twice.
    assert len(suites.table_runs("part_shapes_deeplab")) == 22
    # Ten rows of detectors in the thesis's Tables 2.2 and 2.3.
    assert len(suites.table_runs("part_imagenet_dino")) == 2 * 10


def test_suites_have_every_row_of_the_thesis(tool):
    suites, numbers = tool("runs.suites"), tool("runs.thesis.numbers")
    for chapter in "23":
        runs = {(run.leaf, run.cells[2]) for run in suites.suite_runs(f"thesis_{chapter}")}
        for table in numbers.THESIS:
            if table.number.startswith(chapter):
                for row in table.rows:
                    wanted = {(leaf + g.variant, g.training) for leaf in row.leaves for g in table.groups}
                    assert wanted <= runs, table.number


def test_a_folder_for_all_runs_and_the_last_word_of_the_user(tool):
    suites = tool("runs.suites")
    runs = suites.suite_runs("part_shapes_small", ["resnet50"], ["SOLVER.EPOCHS", "1.0"], "out")
    cfgs = [get_part_robust_cfg(ROOT / run.config_file, run.opts) for run in runs]
    assert [cfg.OUTPUT_DIR for cfg in cfgs] == ["out/resnet50", "out/resnet50_adv"]
    assert cfgs[1].MODEL.WEIGHTS == "out/resnet50/model_best.pth" and cfgs[0].SOLVER.EPOCHS == 1.0
    assert {run.leaf for run in suites.suite_runs("thesis_3", ["deeplab_two_headed"])} == {
        "deeplab_two_headed",
        "deeplab_two_headed_5steps",
    }
    for name in suites.SUITES:  # also one of several data sets, whose leaves have the same names
        runs = suites.suite_runs(name, folder="out")
        assert len({run.output for run in runs}) == len(runs), name


def test_corrections_of_the_thesis(tool):
    tables, numbers = tool("runs.thesis.tables"), tool("runs.thesis.numbers")
    rows = {row.cells: tables.corrected(numbers.TABLE_2_3, row) for row in numbers.TABLE_2_3.rows}
    # Pixel accuracy, AP50, AP, accuracy of each group, percent: mAP columns exchanged,
    assert rows["DeepLabv3+", "26.8", "", ""] == [82.2, 26.7, 12.2, 98.8, 71.7, 16.1, 6.7, 84.1, 54.7, 6.4, 3.0, 40.6]
    # and of the two-headed rows the part scores on clean and attacked images, but not the class accuracies.
    two_headed = rows["DINO two-head", "46.9", "6", "900"]
    assert two_headed[4:] == [69.6, 30.9, 16.9, 48.2, 58.8, 27.7, 16.6, 31.9]
    for table in numbers.THESIS:
        for row in table.rows:
            values = tables.corrected(table, row)
            assert len(values) == len(tables.columns(table)) and set(row.notes) <= set(table.notes)
            if "AP" in table.metrics:
                per_group = len(table.metrics)
                assert all(values[i + 1] >= values[i + 2] for i in range(0, len(values), per_group))
    mislabelled = numbers.TABLE_3_3.rows[1]
    assert mislabelled.cells == ("Mask DINO", "0.0") and set(tables.corrected(numbers.TABLE_3_3, mislabelled)) == {None}


def test_tables_of_records(tool, monkeypatch, tmp_path):
    suites, run_tables = tool("runs.suites"), tool("runs.tables")
    records = {
        "deeplab_two_headed": accuracies(81.25, 3.0, 70.0),
        "deeplab_two_headed_adv": accuracies(75.0, 47.0, 72.0),
        "resnet50": accuracies(76.0, 1.0),
    }
    monkeypatch.setattr(Run, "record", lambda run: records.get(run.title))
    made = run_tables.Tables(suites.suite_runs("part_shapes_small"), tmp_path, "tables", of_thesis=True)
    made.write()
    text = made.markdown.read_text()
    assert text.index("## Table 3.4") < text.index("## All runs of part_shapes_deeplab")
    assert "Table 2." not in text and "Table 3.2" not in text, "no runs of theirs"
    assert text.count("**Stand-in.**") == text.count("## Table") and "do not compare" in text
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    assert ["Two-Headed DeepLabv3+", "70.0 (71.5)", "81.2 (73.0)", "72.0 (64.8)", "75.0 (46.9)", "- (60.9)"] in [
        line[:6] for line in lines
    ]
    # Columns without any number are left out.
    assert lines[-5][:5] == ["model", "supervision", "training", "acc., clean", "acc., pgd20"]
    assert "pixel acc., pgd20" not in lines[-5] and "AP50, clean" in lines[-5]
    assert "10 images of data; pgd20: attack on cross_entropy, 20 steps" in text
    assert "- Two-Headed, masks, clean: beware" in text
    assert "\n\n\n" not in text and "Table 3.3" not in text and "Table 3.1" not in text, "one row compares nothing"
    rows = list(csv.DictReader((tmp_path / "table_3.4.csv").open()))
    title = "adv. trained, adv. images: acc."
    assert [row["model"] for row in rows] == ["ResNet50", "Two-Headed DeepLabv3+"]
    assert rows[1][f"{title} (ours on PartShapes)"] == "47" and rows[1][f"{title} (thesis)"] == "18.4"
    assert len(list(csv.DictReader((tmp_path / "part_shapes_deeplab.csv").open()))) == 3
    # A run that is finished later comes in, and nothing is left over from writing.
    records["resnet50_adv"] = accuracies(77.0, 28.8)
    made.write()
    assert "## Table 3.1" in made.markdown.read_text()
    assert "28.8 (11.6)" in made.markdown.read_text() and not list(tmp_path.glob("*.tmp"))


def test_attacks_in_words(tool):
    words = tool("runs.tables").attack_words
    settings = build_attack({"STEPS": 20, "STEP_SIZE": 2.0, "KEEP": "best", "RESTARTS": 5}).describe()
    for word in ("PGD", "cross_entropy", "linf 8/255", "20 steps of 2/255", "5 restarts", "random start", "best"):
        assert word in words(settings)
    assert words({**settings, "full_gradient": False, "restarts": 1}).endswith("best iterate, cut gradient")
    square = build_attack({"NAME": "Square", "STEPS": 9, "NORM": "l2", "EPS": 255.0, "OBJECTIVE": "margin"})
    assert words(square.describe()).startswith("Square on margin, l2 255/255, 9 steps")


def test_best_of_several_and_changes(tool):
    tables, numbers = tool("runs.thesis.tables"), tool("runs.thesis.numbers")
    records = {
        ("dino_sequential", "adversarial"): accuracies(80.0, 30.0, 50.0),
        ("dino_two_headed", "adversarial"): accuracies(70.0, 35.0, 50.0),
    }
    found = tables.lines(numbers.TABLE_2_1, {None: records}, stand_in=False)
    assert [line.ours for line in found] == [[None, None], [70.0, 35.0]]
    assert "- (84.1)" in tables.markdown(numbers.TABLE_2_1, found) and "Stand-in" not in tables.markdown(
        numbers.TABLE_2_1, found
    )
    lengths = {}
    for leaf, least in (("deeplab_two_headed", 20.0), ("deeplab_two_headed_5steps", 18.0)):
        record = accuracies(50.0, 40.0, 60.0)
        record["attacks"]["pgd100x5"] = {"objective": "cross_entropy"}
        record["results"]["data"]["classification_pgd100x5"] = {"accuracy": least}
        lengths[leaf, "adversarial"] = record
    first = tables.lines(numbers.TABLE_3_2, {None: lengths}, stand_in=False)[0]
    assert first.ours == [None, 18.0, None, 20.0, 2.0] and first.thesis[-1] == 0.9


def test_mistakes_are_answered_by_a_sentence(tool, capsys):
    reproduce = tool("cli.reproduce")
    for words, sentence in (
        (["part_shapes_deeplap"], "part_shapes_deeplap"),
        ([], "give a --suite"),
        (["--suite", "part_shapes", "SOLVER.EPOCHS"], "two words each"),
        (["--suite", "part_shapes", "OUTPUT_DIR", "x"], "--output"),
        (["--suite", "part_shapes", "--jobs", "0"], "--jobs"),
        (["--suite", "part_shapes", "--devices", "0,cpu"], "or their UUIDs, got 'cpu'"),
    ):
        with pytest.raises(SystemExit) as found:
            reproduce.main(words)
        assert found.value.code == 2 and sentence in capsys.readouterr().err
    for words, sentence in (
        (["part_shapes_deeplab", "--only", "deeplab_pixle"], "deeplab_pixle"),
        (["--suite", "part_shapes", "SOLVER.EPOCH", "1"], "SOLVER.EPOCH"),
    ):
        with pytest.raises(SystemExit, match=sentence):
            reproduce.main(words)


def test_dry_run(tool, tmp_path, capsys, monkeypatch):
    reproduce = tool("cli.reproduce")
    # A complete config needs the data, which need not be drawn yet where tests run.
    monkeypatch.setattr(Run, "complete_config", lambda run: get_part_robust_cfg())
    begun = tmp_path / "resnet50" / "last_checkpoint"
    begun.parent.mkdir()
    begun.write_text("model_0.pth")
    only = ["--only", "resnet50", "--dry-run", "--output", str(tmp_path)]
    assert reproduce.main(["--suite", "part_shapes_small", *only]) == 0
    text = capsys.readouterr().out
    assert "| other config |" in " ".join(text.split()) and "2 runs, 0 finished" in text
    assert [path.name for path in tmp_path.iterdir()] == ["resnet50"], "nothing is written"


def test_dry_run_without_the_data(tool, tmp_path):
    """What there is, is compared by complete configs; without the data there are none, which a sentence says."""
    folder = tmp_path / "resnet50"
    folder.mkdir()
    words = ["--suite", "part_shapes_small", "--only", "resnet50", "--dry-run", "--output", str(tmp_path)]
    (folder / "finished.json").write_text("{}")
    with builtin_below(tmp_path / "data"):
        done = call("reproduce", *words)
    assert done.returncode == 1 and "make-part-shapes" in done.stderr and "Traceback" not in done.stderr


def test_a_failure_is_named_in_the_end(tool, monkeypatch, tmp_path, capsys):
    """The run is real: it finds no data."""
    reproduce = tool("cli.reproduce")
    monkeypatch.setattr(reproduce, "make_part_shapes", lambda root: None)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "nothing"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    output = tmp_path / "runs"
    assert reproduce.main(["part_shapes_deeplab", "--only", "resnet50", "--output", str(output)]) == 1
    error = capsys.readouterr().err
    assert "resnet50 failed: " in error and str(output / "resnet50" / "console.txt") in error
    assert "resnet50_adv left out" in error and not (output / "resnet50_adv").exists()
    assert "make-part-shapes" in (output / "resnet50" / "console.txt").read_text()


def test_a_recipe_alone_brings_what_it_begins_from(tool):
    runs = tool("runs.suites").suite_runs("part_shapes_recipes", ["dino_sequential_ours"], folder="out", seeds=(0, 1))
    assert [run.title for run in runs] == [
        *("dino_sequential, seed 0", "dino_sequential_ours_adv, seed 0"),
        *("dino_sequential, seed 1", "dino_sequential_ours_adv, seed 1"),
    ]
    assert [run.after for run in runs[1::2]] == [run.output for run in runs[::2]]


def test_recipes_start_from_one_clean_model_and_have_equally_many_passes(tool):
    suites = tool("runs.suites")
    runs = suites.suite_runs("part_shapes_recipes")
    shared = {run.title: run for run in suites.suite_runs("part_shapes_small")}
    passes: dict[str, set[float]] = {}
    for run in runs:
        cfg = get_part_robust_cfg(ROOT / run.config_file, run.opts)
        if run.title in shared:
            assert run == shared[run.title], "a run of both suites is made once"
        if run.cells[2] == "adversarial":
            node = cfg.ATTACK.TRAIN
            steps = 1 if node.NAME == "NFGSM" else node.STEPS
            passes.setdefault(cfg.MODEL.WEIGHTS, set()).add(cfg.SOLVER.EPOCHS * (steps + 1))
            assert node.EPS == 8.0
    assert len(passes) == 3 and all(found == {16.0} for found in passes.values())
    names = {run.leaf for run in runs}
    recipes = {path.stem.removesuffix("_adv") for path in (ROOT / "configs/part_shapes/recipes").glob("*.yaml")}
    assert recipes < names
