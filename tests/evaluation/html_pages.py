"""Reports as a reader sees them: parsed HTML and rendered Markdown, with the checks that every page must pass."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
from markdown_it import MarkdownIt

from part_robust.evaluation.report import write_report
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


def rendered(markdown: str) -> Page:
    """As a reader shows it that knows tables and strikethrough, and lets HTML through."""
    return Page(MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(markdown))
