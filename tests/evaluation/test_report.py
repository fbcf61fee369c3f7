"""Reports from records: complete, minimal and old ones; they stand alone, show every name as text and can be read by
machines."""

from __future__ import annotations

import copy
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from markdown_it import MarkdownIt

from part_robust.cli.report import main
from part_robust.evaluation.checks import failed
from part_robust.evaluation.report import (
    evaluations,
    find_records,
    load_record,
    write_leaderboard,
    write_report,
    write_zoo,
)
from part_robust.evaluation.report.content import Cell, make_table, to_text
from part_robust.evaluation.report.examples import example_section
from part_robust.evaluation.report.plots import convergence, eps_curve
from part_robust.evaluation.report.render import escape_markdown, render_html, render_markdown
from part_robust.evaluation.report.sections import build_report
from tests.evaluation import record_fixture as fixture

VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """Checks nesting, and collects what the page loads, says and names."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.stack: list[str] = []
        self.tags: list[tuple[str, dict]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert not self.stack, f"never closed: {self.stack}"

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.stack and self.stack[-1] == tag, f"</{tag}> closes {self.stack[-3:]}"
        self.stack.pop()

    def handle_data(self, data):
        if self.stack and self.stack[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def all(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.tags if name == tag]


def write(folder: Path, record: dict, pictures: dict | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "robustness.json"
    path.write_text(json.dumps(record))
    if pictures:
        np.savez(folder / f"pictures_{fixture.DATASET}.npz", **pictures)
    return path


def pages(folder: Path, record: dict, pictures: dict | None = None) -> tuple[str, Page, str]:
    markdown, html = write_report(write(folder, record, pictures))
    text = html.read_text()
    stands_alone(text)
    return markdown.read_text(), Page(text), text


def stands_alone(text: str) -> None:
    """Nothing is fetched and nothing runs."""
    page = Page(text)
    assert "http" not in text
    assert not page.all("script") and not page.all("link") and not page.all("iframe")
    assert "@import" not in text
    sources = [image["src"] for image in page.all("img")]
    assert all(source.startswith("data:image/") for source in sources)
    targets = [attributes["href"] for _, attributes in page.tags if attributes.get("href")]
    targets += re.findall(r"url\(([^)]*)\)", text)
    ids = [attributes["id"] for _, attributes in page.tags if attributes.get("id")]
    assert len(ids) == len(set(ids)), "two elements share an id"
    assert targets and all(target.strip("\"'").startswith("#") for target in targets)
    assert {target.strip("\"'")[1:] for target in targets} <= set(ids)
    labels = {attributes["aria-labelledby"] for _, attributes in page.tags if attributes.get("aria-labelledby")}
    assert labels <= set(ids)


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


NAMES = (
    "<script>alert(1)</script>",
    "![x](http://example.org/x.png)",
    "[a](javascript:alert(1))",
    "\"><img src=x onerror=alert(1)> '",
    "a|b||",
    "back\\|slash\\",
    "`code` **bold** _it_ ~~gone~~ $x^2$ <!-- -->",
    "[ref]: http://example.org",
    "[1.0, 2.0](http://example.org) www.example.org",
    "# not a heading",
    "- not a list",
    "1. not a list",
    "{{ 7 * 7 }} {% raw %} &lt;b&gt;",
)


def renamed(name: str) -> tuple[dict[str, Any], set[str]]:
    """A record with `name` in each of its texts, with one plot, and what a page must show."""
    texts = set()

    def text(field: str) -> str:
        texts.add(f"{name} {field}")
        return f"{name} {field}"

    record = fixture.record()
    entry = record["evaluation"].pop(fixture.DATASET)
    record["evaluation"][text("dataset")] = entry
    record |= {
        "name": text("model"),
        "architecture": text("architecture"),
        "config": f"# {text('config')}",
        "results": {},
    }
    record["warnings"] = {text("dataset"): [text("warning")]}
    record["checkpoint"]["path"], record["versions"] = text("checkpoint"), {text("library"): text("version")}
    record["attacks"] = {
        text("attack"): {"attack": text("method"), "objective": text("objective"), text("key"): text("value")}
    }
    entry |= {"classes": [text(f"class {i}") for i in range(3)], "parts": [text("part 0"), text("part 1")]}
    entry |= {"headline": text("tier"), "verdict": text("verdict"), "device": text("device")}
    entry |= {"convergence": {text("attack"): [1.0, 2.0]}, "eps_curve": [], "fab_distances": []}
    entry["tiers"] = {text("tier"): entry["tiers"]["standard"] | {"objective": text("class accuracy")}}
    for number, row in enumerate(entry["tiers"][text("tier")]["attacks"]):
        row["name"] = text(f"attack {number}")
    for row in entry["attack_matrix"][1:]:
        row |= {"attack": text("row of the matrix"), "head": text("head")}
    for row, values in (("per_class", entry["per_class"]), ("per_part", entry["per_part"])):
        for value in values:
            value["name"] = text(row)
    entry["checks"][1] |= {"name": text("check"), "sentence": text("finding"), "remedy": text("remedy")}
    entry["files"]["flags"] = text("file")
    return record, texts


def rendered(markdown: str) -> Page:
    """As a reader shows it that knows tables and strikethrough, and lets HTML through."""
    return Page(MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(markdown))


def markup(page: Page) -> set[tuple[str, frozenset[str]]]:
    """Elements with the names of their attributes, but for the class and style of a cell, which follow its content."""
    return {(tag, frozenset(attributes) - {"class", "style"}) for tag, attributes in page.tags}


def shows(page: Page, texts: set[str]) -> None:
    assert not {text for text in texts if " ".join(text.split()) not in page.text}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """HTML and Markdown, as read, of a record whose names are plain words."""
    folder = tmp_path_factory.mktemp("plain")
    write(folder, {}, fixture.pictures(1))
    report = build_report(renamed("plain")[0], folder)
    return Page(render_html(report)), rendered(render_markdown(report))


@pytest.mark.parametrize("name", NAMES)
def test_every_text_is_shown_as_text(name, plain, tmp_path):
    record, texts = renamed(name)
    path = write(tmp_path / "run", record, fixture.pictures(1))
    report = build_report(record, path.parent)
    html, markdown = Page(render_html(report)), rendered(render_markdown(report))
    shows(html, texts)
    # Those of the example images alone are not in Markdown.
    shows(markdown, texts - {f"{name} part 0", f"{name} part 1"})
    assert markup(html) == markup(plain[0]) and markup(markdown) == markup(plain[1])
    assert all(link["href"].startswith("#") for link in html.all("a"))
    assert all(image["src"].startswith("data:image/") for image in html.all("img"))


@pytest.mark.parametrize("name", NAMES)
def test_pages_of_many_records_show_text_as_text(name, tmp_path):
    record, _ = renamed(name)
    path = write(tmp_path / "run", record)
    board, html = write_leaderboard([path], tmp_path)
    zoo = write_zoo([path], tmp_path / "zoo.md")
    for page in (Page(html.read_text()), rendered(board.read_text()), rendered(zoo.read_text())):
        shows(page, {f"{name} model", f"{name} dataset"})
        assert not any(page.all(tag) for tag in ("script", "img", "b", "em", "del"))
        assert all(link["href"].startswith("#") for link in page.all("a"))


def test_a_name_that_is_not_utf_8_is_shown_as_far_as_it_can_be(tmp_path):
    record, _ = renamed("caf\udce9")
    for path in write_report(write(tmp_path, record)):
        assert "caf? model" in path.read_text()


def test_markdown_stays_readable():
    for text in ("33.3 % [30.7, 36.0]", "2 checks: 1 pass, 1 warning (C13)", "-5.0", "-", "output/x.pth", "1,234.5"):
        assert escape_markdown(text) == text
    # What GitHub would make a link of.
    assert "://" not in escape_markdown("http://example.org") and "www." not in escape_markdown("www.example.org")


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


def test_a_formula_in_the_name_of_an_attack_is_text():
    assert "$\\frac$ (2)" in convergence({"$\\frac$": [1.0, 2.0]})


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
    assert "| 41.0 | - | - | 41.0 | pgd100x5 |" in old, "thesis PGD is known by what it is"
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
