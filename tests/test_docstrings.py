"""Docstrings as ruff cannot check them: of methods that override nothing, and first lines that are not fragments."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path

import part_robust

# A config's way into a constructor, whose docstring describes the arguments.
EXEMPT = {"from_config"}
# "Of the batch.", "As of `Attack`.", "What is left.": a reader of the line alone does not know what is spoken of.
FRAGMENT = re.compile(r"(Of|As of|Likewise|What|Such as|By|Without)\b")


def public_classes() -> Iterator[type]:
    """All classes of the package that can be imported here: the Triton kernel needs triton."""
    for found in pkgutil.walk_packages(part_robust.__path__, "part_robust."):
        is_kernel = found.name == "part_robust.layers.triton_sampling"
        if found.name.endswith("__main__") or (is_kernel and not importlib.util.find_spec("triton")):
            continue
        module = importlib.import_module(found.name)
        for name, thing in vars(module).items():
            if inspect.isclass(thing) and thing.__module__ == module.__name__ and not name.startswith("_"):
                yield thing


def undescribed_methods(cls: type) -> list[str]:
    found = []
    for name, member in vars(cls).items():
        is_method = inspect.isfunction(member) or isinstance(member, classmethod | staticmethod | property)
        overrides = any(hasattr(base, name) for base in cls.__mro__[1:])
        if is_method and not overrides and not name.startswith("_") and name not in EXEMPT and not member.__doc__:
            found.append(f"{cls.__module__}.{cls.__qualname__}.{name}")
    return found


def fragments(path: Path) -> list[str]:
    """Names of what a file defines with a docstring that begins with a fragment."""
    defined = [
        node
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    return [
        f"{path.name}: {getattr(node, 'name', 'the module')}"
        for node in defined
        if FRAGMENT.match(ast.get_docstring(node) or "")
    ]


def test_first_lines_are_sentences():
    paths = list(Path(part_robust.__file__).parent.rglob("*.py"))
    found = [name for path in paths for name in fragments(path)]
    assert not found, f"the docstring must begin with a sentence: {', '.join(found)}"


def test_every_public_method_is_described():
    classes = list(public_classes())
    assert len(classes) > 200
    found = [name for cls in classes for name in undescribed_methods(cls)]
    assert not found, f"no docstring, and they override nothing: {', '.join(found)}"
