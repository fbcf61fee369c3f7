"""Names from data are dead text in the Markdown that importers and reports write."""

from __future__ import annotations

import pytest

from part_robust.data.importers.report import markdown
from part_robust.utils.markdown import escape

NAMES = {
    "[win](https://evil.example)": r"\[win\](https:&#47;&#47;evil.example)",
    "![x](http://evil.example/a.png)": r"!\[x\](http:&#47;&#47;evil.example/a.png)",
    "<img src=x onerror=alert(1)>": "&lt;img src=x onerror=alert(1)&gt;",
    "<https://evil.example>": "&lt;https:&#47;&#47;evil.example&gt;",
    "WWW.evil.example": "WWW&#46;evil.example",
    "a | b\n# c": r"a \| b \# c",
    "`code`": r"\`code\`",
    "[x][1]": r"\[x\]\[1\]",
    "[1.0, 2.0](evil)": r"\[1.0, 2.0\](evil)",
}


@pytest.mark.parametrize(("name", "dead"), NAMES.items())
def test_names_in_the_report_of_an_import(name, dead):
    assert escape(name) == dead
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


@pytest.mark.parametrize(
    "text",
    ["lamp: base (left), 95 % [3.0, 4.5]", "1 pass, 1 warning (C13)", "-5.0", "-", "a/b.pth", "1,234.5"],
)
def test_plain_text_stays_readable(text):
    assert escape(text) == text
