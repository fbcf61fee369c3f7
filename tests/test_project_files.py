"""The files around the code say what the code says: versions, commands, folders."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

import part_robust

ROOT = Path(__file__).resolve().parent.parent


def lint_commands() -> set[str]:
    """Commands of `make lint`, without the interpreter."""
    lines = re.search(r"^lint:.*\n((?:\t.+\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)[1].splitlines()
    return {line.removeprefix("\t$(RUN) -m ") for line in lines}


def test_hooks_run_the_linters_of_the_makefile():
    repositories = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    hooks = [hook for repository in repositories for hook in repository["hooks"]]
    assert {repository["repo"] for repository in repositories} == {"local"}
    # `--force-exclude` is for file names, which a hook gives instead of the folder.
    found = {hook["entry"].removeprefix("python -m ").replace("--force-exclude", ".") for hook in hooks}
    assert found == lint_commands()
    assert "mypy part_robust" in found


def test_the_workflow_runs_make_test():
    workflow = yaml.safe_load((ROOT / ".github/workflows/test.yml").read_text())
    (job,) = workflow["jobs"].values()
    assert job["steps"][-1] == {"run": "make test"} and job["runs-on"].startswith("ubuntu")
    allowed = re.search(r'python_requires=">=(3\.\d+),<3\.(\d+)"', (ROOT / "setup.py").read_text())
    assert job["strategy"]["matrix"]["python"] == [allowed[1], f"3.{int(allowed[2]) - 1}"]


def test_types_are_checked_for_the_oldest_python():
    settings, setup = (ROOT / "pyproject.toml").read_text(), (ROOT / "setup.py").read_text()
    (checked,) = re.findall(r'^python_version = "(.+?)"', settings, re.MULTILINE)
    assert f'python_requires=">={checked},' in setup


def test_citation_and_changelog_have_the_package_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == part_robust.__version__ and citation["license"] == "Apache-2.0"
    assert citation["cff-version"] == "1.2.0" and citation["authors"] and citation["message"]
    changes = (ROOT / "CHANGELOG.md").read_text()
    assert part_robust.__version__ in changes
    headings = re.findall(r"^### (.+)$", changes, re.MULTILINE)
    assert set(headings) <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_issue_templates_have_a_name_and_a_purpose():
    templates = sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.md"))
    assert [path.stem for path in templates] == ["bug_report", "feature_request"]
    for path in templates:
        header = yaml.safe_load(path.read_text().split("---")[1])
        assert header["name"] and header["about"]


def test_contributing_names_files_that_exist():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    for name in re.findall(r"`((?:part_robust|tests|configs|datasets|docs)/[\w/.]*)`", text):
        assert (ROOT / name).exists(), name
    table = re.findall(r"^\| (`.+?`) \|", text, re.MULTILINE)
    folders = {folder for cell in table for folder in re.findall(r"`(\w+)`", cell)}
    # `utils` may be imported from everywhere.
    there = {path.parent.name for path in (ROOT / "part_robust").glob("*/__init__.py")}
    assert folders == there - {"utils"}
