"""Registers the built-in data sets below another folder for the time of one test."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog

from part_robust.data import register_builtin


@contextmanager
def builtin_below(root: Path) -> Iterator[None]:
    """Inside, `part_robust_<data>_<split>` are those of `root`; afterwards the names are as they were."""
    names = set(register_builtin(root))

    def take() -> dict:
        taken = {name: DatasetCatalog.pop(name) for name in names}
        for name in names:
            MetadataCatalog.pop(name, None)
        return taken

    take()
    register_builtin(root)
    try:
        yield
    finally:
        take()
        register_builtin()
