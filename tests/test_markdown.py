"""Names from data stay dead text in the Markdown that the tools write."""

from __future__ import annotations

import pytest

from part_robust.data.importers.report import markdown
from part_robust.utils.markdown import dead_text, escape

NAMES = {
    "[win](https://evil.example)": "[win\\](https:&#8203;//evil.example)",
    "![x](http://evil.example/a.png)": "![x\\](http:&#8203;//evil.example/a.png)",
    "<img src=x onerror=alert(1)>": "&lt;img src=x onerror=alert(1)&gt;",
    "<https://evil.example>": "&lt;https:&#8203;//evil.example&gt;",
    "WWW.evil.example": "WWW&#8203;.evil.example",
    "me@evil.example": "me&#8203;@evil.example",
    "a | b\n# c": "a \\| b # c",
    "`code`": "\\`code\\`",
    "[x][1]": "[x\\][1]",
    "[x]: evil": "[x\\]: evil",
    "[[a](b)](c)": "[[a\\](b)\\](c)",
    "a\\[b](c)": "a\\\\[b\\](c)",
}


@pytest.mark.parametrize(("name", "dead"), NAMES.items())
def test_no_name_becomes_a_link_an_image_or_html(name, dead):
    assert dead_text(name) == dead
    imported = markdown(
        {
            "sources": [],
            "image_root": "photos",
            "images": {"train": {name: 1}},
            "classes": {name: [name]},
            "class_parts_from": "data",
            "skipped": {"missing_image": {"count": 1, "examples": [name]}},
            "repaired": {},
            "noted": {},
        }
    )
    assert imported.count(dead) == 4 and name not in imported


def test_underscores_are_readable_in_a_terminal():
    assert dead_text("output/deeplab_two_headed_adv") == "output/deeplab_two_headed_adv"


def test_plain_names_stay():
    assert escape("a lamp: base (left), [3.0, 4.5]") == "a lamp: base (left), [3.0, 4.5]"
