"""Reports from records: complete, minimal and old ones; they stand alone and can be read aloud."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from part_robust.cli.report import main
from part_robust.evaluation.checks import failed
from part_robust.evaluation.report import (
    evaluations,
    find_records,
    load_record,
    write_leaderboard,
)
from part_robust.evaluation.report.content import Cell, make_table, to_text
from part_robust.evaluation.report.examples import example_section
from part_robust.evaluation.report.plots import convergence, eps_curve
from part_robust.evaluation.report.render import render_html, render_markdown
from part_robust.evaluation.report.sections import build_report
from tests.evaluation import record_fixture as fixture
from tests.evaluation.html_pages import Page, pages, rendered, stands_alone, write


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    return pages(tmp_path_factory.mktemp("full"), fixture.record(), fixture.pictures())


def test_a_full_report_has_every_section(full):
    markdown, page, _ = full
    titles = (
        "Summary|Checks|Attacks in order|Attack matrix|Curves|Classes, sizes and parts|Predictions under attack|"
        "Example images|Evaluation|Attack settings|Provenance"
    )
    for title in titles.split("|"):
        assert page.text.count(title) >= 2, "a heading and a link to it"
    for fact in ("33.3 %", "[30.7, 36.0]", "cd" * 32, "ab" * 32, "step_size 0.255", "torch 2.0", "careful with <this>"):
        assert fact in page.text, fact
    assert len(page.all("svg")) == 3
    for section in ("### Summary", "### Attack matrix", "| square | 401 | - | 33.3 |", "## Provenance"):
        assert section in markdown


def test_tables_can_be_read_aloud(full):
    _, page, _ = full
    tables, regions = page.all("table"), [a for a in page.all("div") if a.get("class") == "scroll"]
    assert len(tables) == len(regions) >= 10
    assert all(table.get("aria-labelledby") for table in tables)
    assert all(region["role"] == "region" and region["tabindex"] == "0" for region in regions)
    assert {attributes["scope"] for attributes in page.all("th")} == {"row", "col"}
    assert all(image["alt"] for image in page.all("img"))
    plots = [attributes for attributes in page.all("div") if attributes.get("role") == "img"]
    assert len(plots) == len(page.all("svg")) and all(plot["aria-label"] for plot in plots)
    assert page.all("html")[0]["lang"] == "en" and page.all("meta")[1]["name"] == "viewport"


def test_examples(full):
    _, page, _ = full
    images = page.all("img")
    # The second image has true parts and none predicted.
    assert len(images) == 3 * 6 + 4
    captions = [image["alt"].split(", ", 1)[1] for image in images[:6]]
    assert captions == ["clean", "attacked", "perturbation x16", "true parts", "parts, clean", "parts, attacked"]
    assert "true class: <b>lamp</b>" in page.text
    assert "attacked: sign & post 60 %, bird 40 %" in page.text and "class -1" not in page.text
    assert "worst: image 0" in page.text and "robust: image 3" in page.text


def test_photographs_are_compressed_and_small_images_are_not():
    for side, kind in ((24, "png"), (200, "jpeg")):
        (example,) = example_section(fixture.pictures(1, side), fixture.CLASSES, fixture.PARTS, None).examples
        assert all(picture.source.startswith(f"data:image/{kind}") for picture in example.pictures)
        assert example.enlarged == (kind == "png")
    assert not example_section({}, [], [], 8.0)
    assert not example_section({"clean": np.zeros((0, 3, 4, 4))}, [], [], 8.0)


def summary_texts(entry: dict[str, Any]) -> list[tuple[str, str]]:
    """Text and tone of each sentence in the summary of a record with one data set."""
    entry |= {"eps_curve": [], "convergence": {}, "fab_distances": []}
    report = build_report({"evaluation": {"d": entry}}, Path())
    return [(text.text, text.tone) for text in report.parts[0].sections[0].texts]


def test_an_error_replaces_the_headline():
    entry = fixture.evaluation()
    ((sentence, tone),) = summary_texts(entry)
    assert sentence == entry["verdict"] and tone == "warning", "one check has a warning"
    error = failed("C12", "found no bound", 90.0)
    entry["checks"].append(error.describe())
    ((sentence, tone),) = summary_texts(entry)
    assert tone == "bad" and "33.3" not in sentence
    assert all(text in sentence for text in ("C12", error.sentence, error.remedy))


@pytest.mark.parametrize(
    ("left_out", "numbers"),
    [
        ((), ("33.3 %", "[30.7, 36.0]", "linf 8/255", "75.0 %", "1200 images", "class")),
        (("standard", "thesis"), ("61.0 %", "[60.0, 62.0]", "pixel")),
        (("standard", "thesis", "parts"), ("75.0 %", "1200 images")),
    ],
)
def test_a_record_without_a_sentence_gets_one_with_its_numbers(left_out, numbers):
    entry = fixture.evaluation()
    del entry["verdict"]
    for tier in left_out:
        del entry["tiers"][tier]
    ((sentence, _),) = summary_texts(entry)
    assert all(number in sentence for number in numbers), sentence


@pytest.mark.parametrize("key", sorted(fixture.evaluation()))
@pytest.mark.parametrize("value", ["absent", None])
def test_each_field_may_be_missing_or_empty(key, value, tmp_path):
    record = fixture.record()
    entry = record["evaluation"][fixture.DATASET]
    # Plots take time; the radius marks a line in them.
    if key != "eps":
        entry |= {"eps_curve": [], "convergence": {}, "fab_distances": []}
    if value == "absent":
        del entry[key]
    else:
        entry[key] = None
    report = build_report(record, tmp_path)
    assert (
        fixture.DATASET in Page(render_html(report)).text and fixture.DATASET in rendered(render_markdown(report)).text
    )


def test_minimal_record(tmp_path):
    _, page, _ = pages(tmp_path, {"evaluation": {"d": {}}})
    assert "no checks ran" in page.text and not page.all("svg") and not page.all("img")
    for title in ("Attack matrix", "Curves", "Example images", "Classes, sizes and parts"):
        assert title not in page.text


def test_first_schema(tmp_path):
    markdown, page, _ = pages(tmp_path, fixture.first_schema())
    assert "pgd100x5: 41.0 %" in page.text and "(linf 8/255)" in page.text and "no checks ran" in page.text
    assert "| pgd100x5 | class | 41.00 | 70.00 | 50.00 |" in markdown
    assert "<b>lamp</b>" in page.text and "Parts: IoU" in page.text
    entry = evaluations(fixture.first_schema())[fixture.DATASET]
    assert entry["headline_result"]["correct"] == 205 and entry["num_images"] == 500
    assert entry["per_class"] == [{"name": "<b>lamp</b>", "clean": 70.0, "robust": 30.0}]


def test_first_schema_of_a_clean_segmenter():
    record = fixture.first_schema()
    record["attacks"] = {}
    record["results"] = {"d": {"part_seg": {"mIoU": 60.0, "pixel_accuracy": 80.0, "num_images": 9}}}
    entry = evaluations(record)["d"]
    assert "clean" not in entry and entry["attack_matrix"][0]["mIoU"] == 60.0
    assert "9 images" in summary_texts(entry)[0][0]


def test_many_classes_become_a_list_of_changes(tmp_path):
    record = fixture.record()
    entry = record["evaluation"][fixture.DATASET]
    entry["classes"] = [f"class {i}" for i in range(40)]
    counts = np.zeros((40, 40), dtype=int)
    counts[3, 7], counts[3, 3], counts[5, 1] = 30, 30, 2
    entry["clean_to_attacked"] = counts.tolist()
    markdown, _, _ = pages(tmp_path, record)
    assert "| class 3 | class 7 | 30 | 50.0 |" in markdown
    assert "| class 5 | class 1 | 2 | 100.0 |" in markdown


def test_plots_are_the_same_twice_and_take_the_colours_of_the_page():
    points = fixture.evaluation()["eps_curve"]
    first = eps_curve(points, 8.0)
    assert first == eps_curve(points, 8.0)
    assert first.startswith("<svg") and first.endswith("</svg>")
    assert "currentColor" in first and "var(--line)" in first and "http" not in first
    assert not re.search(r"<svg[^>]* (width|height)=", first) and "viewBox" in first
    assert "apgd_ce (100)" in convergence(fixture.evaluation()["convergence"])


def test_tables():
    rows = [{"a": "x", "b": 1.0, "c": Cell("y"), "d": None}, {"a": "z", "b": None, "c": 2, "d": ""}]
    table = make_table("", rows)
    assert table.columns == ["a", "b", "c"], "nobody has a value in the last one"
    assert table.kinds == ["short", "number", "short"]
    assert [cell.text for cell in table.rows[1]] == ["z", "-", "2"]
    assert not make_table("", []).rows
    values = (None, float("nan"), "", 1234567, 0.05, 12.0, [1.0, 2.25])
    assert [to_text(value) for value in values] == ["-", "-", "-", "1,234,567", "0.1", "12.0", "[1.0, 2.2]"]


# The leaderboard.


def entries(tmp_path: Path) -> list[Path]:
    paths = []
    for name, standard in (("weak", 200), ("strong", 500), ("masked", 1100), ("old", None)):
        record = fixture.first_schema() if standard is None else copy.deepcopy(fixture.record())
        record["name"] = name
        if standard is not None:
            entry = record["evaluation"][fixture.DATASET]
            entry["tiers"]["standard"]["robust"] = fixture.score(standard)
            if name == "masked":
                entry["checks"].append(failed("C6", "cut gradient <x>").describe())
            if name == "strong":
                record |= {"parameters": 28_600_000, "pretraining": "robust ImageNet"}
        paths.append(write(tmp_path / name, record))
    return paths


def test_leaderboard_is_sorted_and_marks_the_unreliable(tmp_path):
    markdown, html = write_leaderboard(entries(tmp_path), tmp_path / "board")
    text = markdown.read_text()
    rows = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| ")][1:]
    assert rows == ["strong", "weak", "old", "masked"]
    strong, weak, old, masked = [line for line in text.splitlines() if line.startswith("| ")][1:]
    assert "| 28,600,000 | robust ImageNet |" in strong and "| 41.7 | 41.7 | [38.9, 44.5] |" in strong
    assert "unreliable: C6 cut gradient &lt;x&gt;" in masked and "unreliable" not in weak
    assert "| thesis | 833.3 | 66.7 |" in strong, "700,000 + 300,000 passes of 1,200 images, 4,000 seconds"
    assert "| 41.0 | - | - | 41.0 | pgd100x5 | - | - |" in old, "thesis PGD is known by what it is"
    stands_alone(html.read_text())


# The command line.


def test_command_line(tmp_path, capsys):
    for name in ("one", "two"):
        write(tmp_path / name, fixture.first_schema())
    main([str(tmp_path)])
    written = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.html"))
    assert written == ["leaderboard.html", "one/report.html", "two/report.html"]
    printed = capsys.readouterr().out
    assert all(str(tmp_path / path) in printed for path in written)


@pytest.mark.parametrize(
    ("content", "sentence"), [(None, "no robustness.json in"), ("{", "is not valid json"), ("[]", "is not the record")]
)
def test_mistakes_get_a_sentence(content, sentence, tmp_path):
    if content is None:
        with pytest.raises(FileNotFoundError, match=sentence):
            find_records([tmp_path])
        with pytest.raises(FileNotFoundError, match="does not exist"):
            find_records([tmp_path / "nothing"])
    else:
        (tmp_path / "robustness.json").write_text(content)
        with pytest.raises(ValueError, match=sentence):
            load_record(find_records([tmp_path])[0])
