"""notebooks/own_data.ipynb, its cells executed in their order on a tiny data set of a user."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.toy import TINY, write_toy

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = json.loads((ROOT / "notebooks" / "own_data.ipynb").read_text())
CELLS = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
SHORT = [
    *TINY,
    *("SOLVER.EPOCHS", 0, "SOLVER.MAX_ITER", 2, "TEST.EVAL_PERIOD", 2),
    *("ATTACK.SPECS.pgd20.STEPS", 2, "ATTACK.SPECS.apgd_ce.STEPS", 2, "ATTACK.SPECS.apgd_t.STEPS", 2),
]


def parameters() -> str:
    """What a user would change in the cell of that name."""
    return (
        f"SIZE, EPOCHS, MODEL = 32, 1.0, ['models/deeplab_two_headed.yaml']\nOPTS = {[str(word) for word in SHORT]}\n"
    )


def test_from_own_data_to_a_report(tmp_path):
    path, _ = write_toy(tmp_path / "mine")
    (tmp_path / "mine" / "annotations").mkdir()
    for split in ("train", "val", "test"):
        shutil.copy(path, tmp_path / "mine" / "annotations" / f"{split}.json")
    script = ""
    for cell in CELLS:
        script += "".join(cell["source"]) + "\n"
        if "parameters" in cell["metadata"].get("tags", ()):
            script += parameters()
    (tmp_path / "cells.py").write_text(script)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}
    done = subprocess.run(
        [sys.executable, "cells.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    output = tmp_path / "output" / "mine"
    assert {"clean", "adversarial", "evaluation", "data.png", "attack.png"} <= {path.name for path in output.iterdir()}
    record = json.loads((output / "evaluation" / "robustness.json").read_text())
    assert list(record["evaluation"]) == ["mine_test"]
    assert list(record["evaluation"]["mine_test"]["tiers"]) == ["screen"]
    assert "mine_test" in (output / "evaluation" / "report.html").read_text()


def test_it_is_as_colab_expects_it_and_holds_no_results():
    assert NOTEBOOK["nbformat"] == 4 and NOTEBOOK["metadata"]["kernelspec"]["name"] == "python3"
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in CELLS)
    assert sum("parameters" in cell["metadata"].get("tags", ()) for cell in CELLS) == 1
    assert "pip" in "".join(CELLS[0]["source"]) and 'find_spec("part_robust") is None' in "".join(CELLS[0]["source"])
