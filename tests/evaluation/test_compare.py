"""The command that compares evaluations: numbers, exit codes, and refusals."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from part_robust.evaluation.compare import NotComparable, compare, load_evaluated, pair_seeds, right_images

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="module")
def tool():
    specification = importlib.util.spec_from_file_location("compare_tool", ROOT / "tools" / "compare.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module.main


def write(
    folder: Path,
    robust: int,
    images: int = 200,
    eps: float = 8.0,
    first_id: int = 1,
    dataset: str = "d",
    seed: int | None = None,
) -> Path:
    """An evaluation in which the first `robust` of the images stand."""
    folder.mkdir()
    ids = np.arange(first_id, first_id + images)
    flags = {"image_id": ids, "label": ids % 3, "clean_correct": ids < first_id + 150}
    flags["robust_standard"] = ids < first_id + robust
    np.savez(folder / f"flags_{dataset}.npz", **flags)
    evaluation = {
        "headline": "standard",
        "tiers": {"standard": {"norm": "linf", "eps": eps}},
        "files": {"flags": f"flags_{dataset}.npz"},
    }
    record = {"evaluation": {dataset: evaluation}} | ({} if seed is None else {"config": f"SEED: {seed}\n"})
    (folder / "robustness.json").write_text(json.dumps(record))
    return folder


def test_attackers_of_other_regions_are_not_compared(tmp_path):
    found = {}
    for name, regions in (("a", ["parts"]), ("b", ["parts"]), ("c", ["object"])):
        folder = write(tmp_path / name, 80)
        record = json.loads((folder / "robustness.json").read_text())
        record["evaluation"]["d"]["tiers"]["standard"] |= {"regions": regions, "patch_sides": [9]}
        (folder / "robustness.json").write_text(json.dumps(record))
        found[name] = load_evaluated(folder)
    compare(found["a"], found["b"], "standard")
    with pytest.raises(NotComparable, match="standard: the threat models differ, .*parts.*object"):
        compare(found["a"], found["c"], "standard")


def test_two_evaluations(tool, tmp_path, capsys):
    a, b = write(tmp_path / "a", 80), write(tmp_path / "b", 60)
    assert tool([str(a), str(b)]) == 0
    text = capsys.readouterr().out
    assert "40.00" in text and "30.00" in text and "-10.00 points" in text and "in A alone 20, in B alone 0" in text
    assert "p = 1.91e-06" in text
    assert tool([str(a), str(b), "--not-worse"]) == 1
    assert "worse" in capsys.readouterr().err
    assert tool([str(b), str(a), "--not-worse"]) == 0
    assert tool([str(a), str(b), "--not-worse", "--tier", "clean"]) == 0


def test_several_seeds_of_both(tool, tmp_path, capsys):
    a = [str(write(tmp_path / f"a{seed}", robust, seed=seed)) for seed, robust in ((0, 80), (1, 84), (2, 70))]
    # Not in the order of the seeds, and one of them is missing.
    b = [str(write(tmp_path / f"b{seed}", robust, seed=seed)) for seed, robust in ((1, 94), (0, 84))]
    assert tool([*a, "--with", *b, "--not-worse"]) == 0
    text = capsys.readouterr().out
    # 40 and 42 %, 42 and 47 %: differences of 2 and 5 points.
    assert "standard, A: 41.00 ± 1.41 %, n = 2" in text and "standard, B: 44.50 ± 3.54 %, n = 2" in text
    # 3.5 -+ 12.706 * 2.1213 / sqrt(2)
    assert "B - A = +3.50 ± 2.12 points, n = 2, 95 % -15.56 .. +22.56 (Student's t)" in text
    assert f"left out, without a partner of SEED 2: {a[2]}" in text
    pairs = [[cell.strip() for cell in line.split("|")] for line in text.splitlines() if line[:3] in ("| 0", "| 1")]
    assert [(cells[1], cells[4], cells[7]) for cells in pairs] == [("0", "+2.00", "0.125"), ("1", "+5.00", "0.00195")]
    # Of the last model, the mean over its seeds.
    assert tool([*a, "--with", *b, "--min-robust", "44.5"]) == 0 and tool([*a, "--with", *b, "--min-robust", "45"]) == 1
    # The interval over the seeds decides, not one of them: 10 points in each of two.
    worse = [str(write(tmp_path / f"c{seed}", robust, seed=seed)) for seed, robust in ((0, 60), (1, 64))]
    capsys.readouterr()
    assert tool([*a[:2], "--with", *worse, "--not-worse"]) == 1
    assert "B is worse than A" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        tool(a)
    assert "behind --with" in capsys.readouterr().err


def test_pairs_of_seeds(tmp_path):
    def load(name: str, *seeds: int | None):
        return [load_evaluated(write(tmp_path / f"{name}{i}", 80, seed=seed)) for i, seed in enumerate(seeds)]

    one, same, other, unknown = load("one", 0, 1), load("same", 0, 0), load("other", 5, 6), load("unknown", None)
    with pytest.raises(NotComparable, match=r"SEED in common, got 0, 1 and 5, 6"):
        pair_seeds(one, other)
    found = pair_seeds(one, same)
    assert not found.by_seed and found.pairs == list(zip(one, same, strict=True)), "two of one SEED: their order"
    with pytest.raises(NotComparable, match="2 and 1 evaluations cannot be paired"):
        pair_seeds(one, unknown)
    with pytest.raises(NotComparable, match="must be named once, got .*one0 twice on one side"):
        pair_seeds([*one, one[0]], [*other, *unknown])


def test_bounds_for_ci(tool, tmp_path, capsys):
    a = str(write(tmp_path / "a", 80))
    assert tool([a, "--min-robust", "40"]) == 0
    assert tool([a, "--min-robust", "40.5"]) == 1
    assert "40.00 % is below 40.5 %" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        tool([a, "--min-robust", "0.4"])
    assert "in percent" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        tool([a, "--not-worse"])


def test_what_cannot_be_compared(tool, tmp_path, capsys):
    a = write(tmp_path / "a", 80)
    with pytest.raises(SystemExit) as stop:
        tool([str(a), str(tmp_path / "nowhere")])
    assert stop.value.code == 2 and "nowhere" in capsys.readouterr().err
    first = load_evaluated(a)
    with pytest.raises(NotComparable, match=r"lacks 1 images.*first 1:"):
        compare(first, load_evaluated(write(tmp_path / "others", 80, first_id=2)), "standard")
    with pytest.raises(NotComparable, match="threat models differ"):
        compare(first, load_evaluated(write(tmp_path / "eps", 80, eps=4.0)), "standard")
    with pytest.raises(NotComparable, match="'screen', only of standard"):
        right_images(first, "screen")
    with pytest.raises(NotComparable, match="no data set e, only d"):
        load_evaluated(a, "e")
    (a / "flags_d.npz").unlink()
    with pytest.raises(NotComparable, match=r"flags_d\.npz is missing"):
        load_evaluated(a)
    (a / "robustness.json").write_text('{"evaluation": {}}')
    with pytest.raises(NotComparable, match=r"TEST\.TIER"):
        load_evaluated(a)
