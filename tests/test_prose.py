"""Words that are old, personal or a metaphor: plain ones say the same, and more readers know them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Only words without a technical meaning, with what to write instead.
PLAIN = {
    r"lest": "so that ... not",
    r"dear|dearer|dearest": "expensive",
    r"mend|mends|mended|mending": "fix, correct, remedy",
    r"whoever|whomever": "the caller, the user",
    r"(some|no|any)body": "the caller, the process, or the passive",
    r"likewise": "also, the same",
    r"(is|are|was|were|be) (told|asked)": "gets, receives, is called",
    r"(go|goes|going|went) on": "continue",
    r"but for|above all": "except; mostly, such as",
}


def pages() -> list[Path]:
    return [
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
        *(path for folder in ("docs", "datasets", "configs") for path in (ROOT / folder).rglob("*.md")),
        *(path for folder in ("part_robust", "tools", "datasets") for path in (ROOT / folder).rglob("*.py")),
        *(ROOT / "configs").rglob("*.yaml"),
        *(ROOT / "part_robust").rglob("*.html"),
    ]


def found_in(text: str) -> list[str]:
    """Lines with such a word, and the plain one."""
    lines = enumerate(text.splitlines(), 1)
    return [
        f"{number}: {match[0]!r} -> {plain}"
        for number, line in lines
        for words, plain in PLAIN.items()
        for match in re.finditer(rf"\b({words})\b", line, re.IGNORECASE)
    ]


def test_plain_words():
    found = [f"{path.relative_to(ROOT)}:{line}" for path in pages() for line in found_in(path.read_text("utf-8"))]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("line", ["dear checks", "Whoever asks", "it is told so", "all but for one", "it goes on"])
def test_the_words_are_found(line):
    assert found_in(f"fine\n{line}")[0].startswith("2: ")
    assert not found_in("a fix that continues, except where the caller asks; the audit is expensive")
