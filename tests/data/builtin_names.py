"""Registers the built-in data sets below another folder for a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog

from part_robust.data import register_builtin


@contextmanager
def builtin_below(root: Path) -> Iterator[None]:
    """Inside, `part_robust_<data>_<split>` are those of `root`; afterwards they are what they were. Contexts nest."""
    names = register_builtin()
    before = [(name, DatasetCatalog.pop(name), MetadataCatalog.pop(name)) for name in names]
    register_builtin(root)
    try:
        yield
    finally:
        for name, loader, metadata in before:
            DatasetCatalog[name], MetadataCatalog[name] = loader, metadata
