"""Reports show the names of users as text, whatever they contain, in HTML and in Markdown."""

from __future__ import annotations

from typing import Any

import pytest

from part_robust.evaluation.report import write_leaderboard, write_report, write_zoo
from part_robust.evaluation.report.plots import convergence
from part_robust.evaluation.report.render import render_html, render_markdown
from part_robust.evaluation.report.sections import build_report
from tests.evaluation import record_fixture as fixture
from tests.evaluation.html_pages import Page, rendered, write

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


def test_a_formula_in_the_name_of_an_attack_is_text():
    assert "$\\frac$ (2)" in convergence({"$\\frac$": [1.0, 2.0]})
