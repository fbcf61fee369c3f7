"""Local attacks in reports: a table and pictures by region; and where they do not count."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from part_robust.evaluation.record import describe_evaluation, metrics_of, write_files
from part_robust.evaluation.record_schema import check_record
from part_robust.evaluation.report.leaderboard import entry_of
from part_robust.evaluation.report.local import local_examples, local_section
from part_robust.evaluation.report.render import render_html, render_markdown
from part_robust.evaluation.report.sections import build_report
from tests.evaluation.local_fixture import local_plan, some_items
from tests.evaluation.tier_fixture import PARTS, evaluators, run


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """(folder, one data set's entry)."""
    items, folder = some_items(), tmp_path_factory.mktemp("local")
    merged, plan = run(folder, items, plan=local_plan(items))
    entry = describe_evaluation(plan, merged, metrics_of(plan, merged, evaluators()), "CPU")
    entry["files"] = write_files(folder, "toy", plan, merged, folder / "adversarials")
    return folder, entry


def test_the_table_has_a_row_for_each_region(evaluated):
    folder, entry = evaluated
    (table,) = local_section(entry).tables
    assert [row[0].text for row in table.rows] == [
        *(f"part:{name}" for name in PARTS),
        *("object", "background", "patch:3px", "any one part", "any one region"),
    ]
    cells = dict(zip(table.columns, (cell.text for cell in table.rows[0]), strict=True))
    row = entry["local"]["table"][0]
    assert cells["images"] == "12" and cells["images without it"] == "2"
    assert cells["attacked %"] == f"{row['robust']['accuracy']:.1f}"
    assert cells["greyed out %"] == f"{row['greyed']['accuracy']:.1f}"
    (note,) = local_section(entry).texts
    assert "values within 30/255 in linf" in note.text and "tried at 3 places" in note.text
    page = render_markdown(build_report({"evaluation": {"toy": entry}}, folder))
    assert "Local attacks" in page and "| any one region |" in page


def test_regions_of_no_image_are_named(evaluated):
    local = evaluated[1]["local"]
    missing = {**local["table"][0], "region": "part:z", "images": 0}
    entry = {"local": {**local, "norm": "linf", "eps": 255.0, "table": [*local["table"], missing]}}
    section = local_section(entry)
    assert "part:z" not in [row[0].text for row in section.tables[0].rows]
    assert "any value" in section.texts[0].text and section.texts[1].text == "In no image: part:z."


def test_pictures_show_what_may_change(evaluated):
    folder, entry = evaluated
    section = local_examples(entry, folder)
    assert any("part:x" in example.title for example in section.examples)
    with np.load(folder / entry["files"]["local"]) as arrays:
        for index, example in enumerate(section.examples):
            mask, clean = arrays["picture_mask"][index], np.moveaxis(arrays["picture_clean"][index], 0, 2)
            before, after = (
                np.asarray(Image.open(io.BytesIO(base64.b64decode(picture.source.split(",")[1]))))
                for picture in example.pictures
            )
            assert (before[mask] == clean[mask]).all() and (abs(before[~mask] - 128.0) <= 32).all()
            assert (after[~mask] == clean[~mask]).all()
    html = render_html(build_report({"evaluation": {"toy": entry}}, folder))
    assert "Local attacks: examples" in html


def test_records_without_local_attacks(tmp_path):
    assert not local_section({}) and not local_examples({}, tmp_path)


def test_the_leaderboard_compares_attackers_without_a_mask(evaluated):
    folder, entry = evaluated
    found = entry_of(Path(folder), {}, entry)
    assert found is not None and found.lowest_name == "strong"
    assert entry["tiers"]["local"]["robust"]["accuracy"] < found.lowest["accuracy"]


def test_the_schema_knows_the_table(evaluated):
    check_record({"evaluation": {"toy": evaluated[1]}}, "here")
    broken = {**evaluated[1], "local": {"table": [{"region": 3}]}}
    with pytest.raises(ValueError, match=r"local.table\[0\].region"):
        check_record({"evaluation": {"toy": broken}}, "here")
