"""Reports from records: complete, minimal and old ones; they stand alone, escape names and can be read by machines."""

from __future__ import annotations

import copy
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from part_robust.attacks.checks import failed
from part_robust.evaluation.html_report import (
    build_report,
    evaluations,
    find_records,
    headline,
    load_record,
    write_leaderboard,
    write_report,
)
from part_robust.evaluation.html_report.blocks import Table, number
from part_robust.evaluation.html_report.contact_sheet import contact_sheet
from part_robust.evaluation.html_report.plots import convergence, eps_curve
from tests.commands import call
from tests.evaluation import record_fixture as fixture

VOID = {"meta", "img", "br", "link", "input", "hr"}
# What an SVG closes itself.
SELF_CLOSED = {"path", "use", "rect", "circle", "line"}


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
        "Verdict Checks|Attacks in order|Attack matrix|Curves|Where it holds|What classes turn into|Contact sheet|"
        "This evaluation|How the attacks were set|Provenance"
    ).replace(" Checks", "|Checks")
    for title in titles.split("|"):
        assert title in page.text
    for fact in ("33.3 %", "[30.7, 36.0]", "cd" * 32, "ab" * 32, "step_size 0.255", "torch 2.0", "careful with <this>"):
        assert fact in page.text, fact
    assert len(page.all("svg")) == 3
    for section in ("### Verdict", "### Attack matrix", "| square | 401 | - | 33.3 |", "## Provenance"):
        assert section in markdown


def test_names_cannot_inject(full):
    markdown, page, text = full
    for name in ("<b>lamp</b>", "<i>wing</i>", "two <headed>", "Square broke <3>"):
        assert name in page.text, "shown as it is"
        assert name not in text, "but never as markup"
        assert name not in markdown
    assert not page.all("b") and not page.all("i")
    assert "sign & post" in page.text and "sign &amp; post" in text


def test_tables_can_be_read_aloud(full):
    _, page, _ = full
    tables, regions = page.all("table"), [a for a in page.all("div") if a.get("class") == "scroll"]
    assert len(tables) == len(regions) >= 10
    assert all(table.get("aria-labelledby") for table in tables)
    assert all(region["role"] == "region" and region["tabindex"] == "0" for region in regions)
    assert {attributes["scope"] for attributes in page.all("th")} == {"row", "col"}
    assert all(image["alt"] for image in page.all("img"))
    assert all(svg["role"] == "img" and svg["aria-label"] for svg in page.all("svg"))
    assert page.all("html")[0]["lang"] == "en" and page.all("meta")[1]["name"] == "viewport"


def test_contact_sheet(full):
    _, page, _ = full
    images = page.all("img")
    # The second image has true parts and none predicted.
    assert len(images) == 3 * 6 + 4
    captions = [image["alt"].split(", ", 1)[1] for image in images[:6]]
    assert captions == ["clean", "attacked", "perturbation x16", "true parts", "parts, clean", "parts, attacked"]
    assert "true class: <b>lamp</b>" in page.text
    assert "attacked: sign & post 60 %, bird 40 %" in page.text and "class -1" not in page.text
    assert "broken farthest: image 0" in page.text and "held: image 3" in page.text


def test_photographs_are_compressed_and_small_images_are_not():
    for side, kind in ((24, "png"), (200, "jpeg")):
        sheet = contact_sheet(fixture.pictures(1, side), fixture.CLASSES, fixture.PARTS, None)
        assert sheet is not None
        assert all(panel.source.startswith(f"data:image/{kind}") for panel in sheet.cards[0].panels)
    assert contact_sheet({}, [], [], 8.0) is None
    assert contact_sheet({"clean": np.zeros((0, 3, 4, 4))}, [], [], 8.0) is None


def test_a_finding_replaces_the_headline(tmp_path):
    record = fixture.record()
    entry = record["evaluation"][fixture.DATASET]
    entry["checks"].append(failed("C12", "images stand without a bound", 90.0).describe())
    markdown, page, text = pages(tmp_path, record)
    assert "not reportable: C12 images stand without a bound" in page.text
    assert "not reportable" in markdown
    assert "standard: 33.3 % robust" not in page.text
    assert 'class="say bad"' in text


def test_verdict_without_a_sentence_in_the_record():
    E = fixture.evaluation()
    assert headline(E) == (
        "standard: 33.3 % [30.7, 36.0] of the classes right under attack (linf 8/255), clean 75.0 % [72.5, 77.4], "
        "1200 images"
    )
    del E["tiers"]["standard"], E["tiers"]["thesis"], E["clean"]
    E["headline"] = "parts"
    assert headline(E).startswith("parts: 61.0 % [60.0, 62.0] of the pixels")


@pytest.mark.parametrize("key", sorted(fixture.evaluation()))
def test_each_field_may_be_missing_or_empty(key, tmp_path):
    for value in ("absent", None):
        record = fixture.record()
        entry = record["evaluation"][fixture.DATASET]
        for plotted in ("eps_curve", "convergence", "fab_distances"):
            entry[plotted] = entry[plotted] if key == "eps" else []
        if value == "absent":
            del entry[key]
        else:
            entry[key] = None
        report = build_report(record, tmp_path)
        assert report.parts[0][0] == fixture.DATASET


def test_minimal_record(tmp_path):
    _, page, _ = pages(tmp_path, {"evaluation": {"d": {}}})
    assert "no checks ran" in page.text and not page.all("svg") and not page.all("img")
    for title in ("Attack matrix", "Curves", "Contact sheet", "Where it holds"):
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
    assert headline(entry) == "9 images"


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


def test_a_table_knows_its_numbers():
    table = Table("", ["a", "b", "c"], [["x", "1.0", "y"], ["z", "-", "2"]])
    assert [table.is_numeric(i) for i in range(3)] == [False, True, False]
    assert [number(x) for x in (None, float("nan"), 1234567, 0.05)] == ["-", "-", "1,234,567", "0.1"]


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


def test_command_line(tmp_path):
    for name in ("one", "two"):
        write(tmp_path / name, fixture.first_schema())
    done = call("report", tmp_path)
    assert done.returncode == 0, done.stderr
    written = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.html"))
    assert written == ["leaderboard.html", "one/report.html", "two/report.html"]
    assert all(str(tmp_path / path) in done.stdout for path in written)


@pytest.mark.parametrize(
    ("content", "sentence"), [(None, "no robustness.json in"), ("{", "is not valid json"), ("[]", "is no record")]
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
