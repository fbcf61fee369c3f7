"""Config files: found by their path, or by their name among those of the package, and read with their bases."""

from __future__ import annotations

import difflib
from pathlib import Path

import yaml

BASE_KEY = "_BASE_"
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_PACKAGE = Path(__file__).resolve().parent.parent


def zoo_folder() -> Path:
    """Returns the folder of the package's configs: inside it where it was installed, beside it in a checkout."""
    inside = _PACKAGE / "configs"
    return inside if inside.is_dir() else _PACKAGE.parent / "configs"


def zoo_configs() -> list[str]:
    """Lists the names of the package's configs, such as "paco/mask_dino_simple.yaml"."""
    folder = zoo_folder()
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.yaml"))


def find_config(name: str | Path, beside: Path | None = None) -> Path:
    """Finds a config file.

    Args:
        name: a path, or a name among the package's configs, with or without "configs/" before it. A path that exists
            wins.
        beside: folder that a relative path starts from; the working directory if None.

    Raises:
        FileNotFoundError: there is neither; names similar configs.
    """
    path = Path(beside or "", Path(name).expanduser())
    if path.is_file():
        return path
    wanted = Path(name).as_posix().removeprefix("configs/")
    packaged = zoo_folder() / wanted
    if packaged.is_file():
        return packaged
    similar = difflib.get_close_matches(wanted, zoo_configs())
    hint = f" (similar: {', '.join(similar)})" if similar else ""
    raise FileNotFoundError(f"config file {path} does not exist, and the package has no config of that name{hint}")


def read_config_file(path: Path) -> dict:
    """Reads a config file and the files that its `_BASE_` lists; later files win, the file itself last.

    A base is a path relative to the file that names it, or else a name among the package's configs.

    Raises:
        FileNotFoundError: a base does not exist.
        ValueError: a file holds no mapping, or replaces a group of keys by a value.
    """
    content = yaml.load(path.read_text(), LOADER)
    if not isinstance(content, dict):
        raise ValueError(f"config file {path} must be a mapping of keys to values, got {type(content).__name__}")
    bases = content.pop(BASE_KEY, [])
    merged: dict = {}
    for base in bases if isinstance(bases, list) else [bases]:
        _merge(read_config_file(find_config(base, path.parent)), merged, path)
    _merge(content, merged, path)
    return merged


def _merge(content: dict, into: dict, path: Path) -> None:
    for key, value in content.items():
        if isinstance(value, dict) and key in into:
            if not isinstance(into[key], dict):
                raise ValueError(f"config file {path}: {key} must be a value as in its base, got a group of keys")
            _merge(value, into[key], path)
        else:
            into[key] = value
