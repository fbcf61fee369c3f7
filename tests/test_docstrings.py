"""Public methods have docstrings; one that overrides another has that one's, which ruff cannot tell."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import pkgutil
from collections.abc import Iterator

import part_robust

# A config's way into a constructor, whose docstring describes the arguments.
EXEMPT = {"from_config"}


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


def test_every_public_method_is_described():
    classes = list(public_classes())
    assert len(classes) > 200
    found = [name for cls in classes for name in undescribed_methods(cls)]
    assert not found, f"no docstring, and they override nothing: {', '.join(found)}"
