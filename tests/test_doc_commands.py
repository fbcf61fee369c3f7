"""Every command in the pages of the repository, docs/, datasets/ and configs/ is one that can be typed.

Its script, module or command of `part-robust` exists and its own parser takes the arguments; KEY VALUE pairs name keys
of the config and values of their type; configs, tests and pages that are named exist, as do attacks, tiers, tables and
models. Nothing is run beyond that. Words for what is a user's own (`...`, `<folder>`, paths below output/, photo.jpg)
may be anything.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import re
import runpy
import shlex
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from part_robust.cli import COMMANDS
from part_robust.config import attack_spec, find_config, get_part_robust_cfg
from part_robust.config.files import is_config
from part_robust.runs.suites import suite_runs, table_runs

ROOT = Path(__file__).resolve().parent.parent
PAGES = [
    *("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "datasets/README.md", "configs/README.md"),
    *(f"docs/{p.name}" for p in ROOT.glob("docs/*.md")),
]
PROGRAMS = ("python", "part-robust", "pip", "make", "torchrun", "srun", "for", "done")
# Of the repository; what is below output/ and most of datasets/ is made by a user.
OURS = re.compile(r"(?<![\w/.])(?:configs|tools|docs|tests|datasets/rules)/[\w/.]+\.\w+")


def snippets(page: str) -> list[str]:
    """Shell text of a Markdown page: blocks between fences or indented, and code within lines."""
    found = []

    def take(block: re.Match) -> str:
        language, text = block[1], block[2]
        if language in ("bash", "sh") or (not language and is_command(text)):
            found.append(text)
        return ""

    prose = re.sub(r"^```(\w*)\n(.*?)^```", take, page, flags=re.MULTILINE | re.DOTALL)
    found += [block for block in re.findall(r"(?:^ {4}\S.*\n(?: {4,}.*\n)*)", prose, re.MULTILINE) if is_command(block)]
    prose = re.sub(r"^ {4}.*\n", "", prose, flags=re.MULTILINE)
    # A script or the command alone is named in a line, not called.
    named = (".py", "part-robust", "part_robust")
    found += [code for code in re.findall(r"`([^`]+)`", prose) if is_command(code) and not code.endswith(named)]
    return found


def is_command(text: str) -> bool:
    words = text.split()
    return bool(words) and (words[0] in PROGRAMS or re.fullmatch(r"(tools|datasets)/\w+\.py", words[0]) is not None)


def commands(snippet: str) -> Iterator[list[str]]:
    """Words of each command; loops unrolled."""
    loop: tuple[str, list[str]] = ("", [""])
    for line in re.sub(r"\\\n", " ", snippet).splitlines():
        words = shlex.split(re.sub(r"<[^>]*>", "...", line), comments=True)
        if not words:
            continue
        if words[0] == "for":
            name, listed = re.fullmatch(r"for (\w+) in (.+); do", " ".join(words)).groups()
            loop = (name, listed.split())
        elif words[0] == "done":
            loop = ("", [""])
        else:
            for value in loop[1]:
                yield [word.replace(f"${loop[0]}", value) if loop[0] else word for word in words]


class Parsed(BaseException):
    """Instead of what a script would do with its arguments."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments


@pytest.fixture
def check(monkeypatch):
    """Raises AssertionError, or what the script's own parser or the config raise, for a command that is wrong."""
    monkeypatch.syspath_prepend(str(ROOT / "tools"))  # of tools/benchmark.py
    monkeypatch.chdir(ROOT)

    def refuse(parser: argparse.ArgumentParser, message: str) -> None:
        raise AssertionError(message)

    def stop_after(parse):
        def stop(*arguments, **options):
            raise Parsed(parse(*arguments, **options))

        return stop

    monkeypatch.setattr(argparse.ArgumentParser, "error", refuse)
    for name in ("parse_args", "parse_intermixed_args"):
        monkeypatch.setattr(argparse.ArgumentParser, name, stop_after(getattr(argparse.ArgumentParser, name)))

    def arguments_of(script: str, words: list[str], is_module: bool) -> argparse.Namespace:
        monkeypatch.setattr(sys, "argv", [script, *words])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # runpy, of modules that are imported already
            try:
                (runpy.run_module if is_module else runpy.run_path)(script, run_name="__main__")
            except Parsed as parsed:
                return parsed.arguments
        raise AssertionError(f"{script} reads no arguments")

    def check_words(words: list[str]) -> None:
        while re.fullmatch(r"[A-Z_]+=.*", words[0]):
            words = words[1:]
        program, *rest = words
        for word in words:
            check_paths(word)
        if program == "srun":
            check_words(rest[next(i for i, word in enumerate(rest) if word == "python") :])
        elif program == "torchrun":
            from torch.distributed.run import get_args_parser

            with pytest.raises(Parsed) as parsed:
                get_args_parser().parse_args(rest)
            launched = parsed.value.arguments
            module = ["-m"] if launched.module else []
            check_words(["python", *module, launched.training_script, *launched.training_script_args])
        elif program == "make":
            assert all(makes(word) for word in rest), f"the Makefile has no {rest}"
        elif program == "pip":
            extras = re.findall(r"part_robust\[(\w+)\]", " ".join(rest))
            wanted = [word for word in rest[1:] if word not in ("torch", "torchvision", "--no-build-isolation")]
            ours = [word for word in wanted if re.fullmatch(r"part_robust\[\w+\]|git\+(\.\.\.|https://\S+)", word)]
            assert rest[0] == "install" and ours == wanted, f"{rest} is none of our packages"
            assert all(f'"{extra}": [' in (ROOT / "setup.py").read_text() for extra in extras), f"no extra {extras}"
        elif program == "python" and rest[:2] == ["-m", "part_robust"]:
            check_words(["part-robust", *rest[2:]])
        elif program == "part-robust" and rest != ["--help"]:
            assert rest[0] in COMMANDS, f"part-robust has no command {rest[0]}"
            command = COMMANDS[rest[0]]
            script = f"tools/{command.module.removeprefix('cli.')}.py"
            module = importlib.import_module(f"part_robust.{command.module}")
            with pytest.raises(Parsed) as parsed:
                module.main([*command.first, *rest[1:]])
            check_arguments(script, parsed.value.arguments)
        elif program == "python" and rest[:2] == ["-m", "pytest"]:
            assert (ROOT / rest[2]).exists(), f"{rest[2]} does not exist"
        elif program == "python" and rest[0] == "-m":
            assert importlib.util.find_spec(rest[1]), f"no module {rest[1]}"
            if rest[2:]:
                arguments_of(rest[1], rest[2:], is_module=True)
        elif program != "part-robust":
            script, *given = rest if program == "python" else words
            assert re.fullmatch(r"(tools|datasets)/\w+\.py", script), f"{program} is not a program that pages may use"
            assert (ROOT / script).is_file(), f"{script} does not exist"
            check_arguments(script, arguments_of(script, given, is_module=False))

    return check_words


def check_paths(text: str) -> None:
    for path in OURS.findall(text):
        assert "/mine/" in path or is_config(ROOT / path), f"{path} does not exist"


def makes(word: str) -> bool:
    name, is_variable, _ = word.partition("=")
    pattern = rf"^{re.escape(name)} \?=" if is_variable else rf"^{re.escape(name)}:"
    return re.search(pattern, (ROOT / "Makefile").read_text(), re.MULTILINE) is not None


def check_arguments(script: str, args: argparse.Namespace) -> None:
    """What the parser alone cannot know."""
    opts = list(getattr(args, "opts", None) or [])
    if script == "tools/reproduce.py":
        opts = list(args.words)
        if args.suite:
            suite_runs(args.suite, args.only)
        else:
            table_runs(opts.pop(0), args.only)
    if opts[-1:] == ["..."]:
        # Pairs, or a value, that the reader knows.
        del opts[-2 if len(opts) % 2 == 0 else -1 :]
    config = getattr(args, "config_file", None)
    if config and not config.startswith("output/") and config != "...":
        find_config(config)
    else:
        config = None
    cfg = get_part_robust_cfg(config, opts)
    named = [*cfg.ATTACK.EVAL, *cfg.ATTACK.EVAL_DURING_TRAINING, cfg.TEST.EPS_CURVE_ATTACK]
    for name in [*named, *([args.attack] if getattr(args, "attack", None) else [])]:
        attack_spec(cfg, name)
    for tier in filter(None, cfg.TEST.TIER.split(",")):
        assert tier in cfg.TEST.TIERS, f"no tier {tier}"


@pytest.mark.parametrize("page", PAGES)
def test_commands_of_a_page(page, check):
    for snippet in snippets((ROOT / page).read_text()):
        for words in commands(snippet):
            try:
                check(words)
            except Exception as error:
                pytest.fail(f"{page}: {' '.join(words)}\n{type(error).__name__}: {error}")


@pytest.mark.parametrize("page", PAGES)
def test_files_that_a_page_names(page):
    check_paths((ROOT / page).read_text())


def test_they_are_found():
    """In each of the ways a page shows them."""
    page = (
        "Say `make demo V=<x y>`, or `code`, `tools/a.py`, and `python tools/report.py x`.\n\n"
        "    python a.py --b \\\n        c\n\nText\n"
        "```\npip install x  # words\n```\n```\ntree/\n  leaf\n```\n```python\nfor x in y: pass\n```\n"
        "```bash\n#!/bin/bash\nfor m in a b; do\n    python tools/$m.py \\\n        $m\ndone\n```\n"
    )
    found = [words for snippet in snippets(page) for words in commands(snippet)]
    assert sorted(found) == [
        ["make", "demo", "V=..."],
        ["pip", "install", "x"],
        ["python", "a.py", "--b", "c"],
        ["python", "tools/a.py", "a"],
        ["python", "tools/b.py", "b"],
        ["python", "tools/report.py", "x"],
    ]
    found = [words for page in PAGES for text in snippets((ROOT / page).read_text()) for words in commands(text)]
    scripts = {word for words in found for word in words if re.fullmatch(r"(tools|datasets)/\w+\.py", word)}
    assert len(found) > 60 and len(scripts) > 12


TRAIN = "python tools/train_net.py --config-file configs/part_shapes/resnet50.yaml"


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("python tools/trian_net.py", "trian_net.py does not exist"),
        ("python tools/train_net.py --config-file configs/part_shapes/resnet51.yaml", "resnet51.yaml does not exist"),
        (f"{TRAIN} --two-fase", "--two-fase"),
        (f"{TRAIN} --num-gpus many", "invalid int value: 'many'"),
        (f"{TRAIN} TEST.TEIR standard", "TEST.TEIR"),
        (f"{TRAIN} TEST.TIER", "odd number|odd|even"),
        (f"{TRAIN} SOLVER.MAX_ITER long", "SOLVER.MAX_ITER must be a whole number"),
        (f"{TRAIN} ATTACK.EVAL \"('pgd21',)\"", "pgd21"),
        (f"{TRAIN} TEST.TIER standard,part", "no tier part"),
        ("python tools/demo.py photo.jpg --run OUTPUT_DIR --attack pgd21", "pgd21"),
        ("python tools/reproduce.py --suite thesis_4", "invalid choice: 'thesis_4'"),
        ("python tools/reproduce.py part_shapes_deeplab --only deeplab_pixle", "deeplab_pixle"),
        ("part-robust trian", "no command trian"),
        ("torchrun --nproc-per-node 2 -m part_robust trian", "no command trian"),
        ("part-robust train --config-file paco/resnet51.yaml", "resnet51.yaml does not exist"),
        ("part-robust evaluate --config-file paco/resnet50.yaml TEST.TEIR standard", "TEST.TEIR"),
        ("part-robust demo photo.jpg --run OUTPUT_DIR --attack pgd21", "pgd21"),
        ("python tools/benchmark.py dino --part 3 --mask-loss dense", "--mask-loss"),
        ("python tools/report.py", "required"),
        ("python datasets/import_coco.py --json x.json --class-rule datasets/rules/cars.yaml", "cars.yaml"),
        ("python -m part_robust.data.chekc x", "no module"),
        ("python -m part_robust.data.check x.json --images y", "--images"),
        ("python -m pytest test", "test does not exist"),
        ("torchrun --nproc-per-node 2 tools/train_net.py --config-file configs/nothing.yaml", "nothing.yaml"),
        ("srun python tools/train_net.py --rezume", "--rezume"),
        ("make demonstration", "demonstration"),
        ("make demo VENF=x", "VENF"),
        ("pip install part_robust[tim]", "no extra"),
        ("pip install something", "none of our packages"),
        ("conda install x", "not a program"),
    ],
)
def test_a_broken_command_is_noticed(command, reason, check):
    with pytest.raises((AssertionError, FileNotFoundError, KeyError, ValueError), match=reason):
        check(shlex.split(command))
