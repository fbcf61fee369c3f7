"""Finds config files by their path, or by their name among those of the package, and reads them with their bases."""

from __future__ import annotations

import difflib
from pathlib import Path

import yaml

from part_robust.utils.errors import UserError
from part_robust.utils.files import check_file

BASE_KEY = "_BASE_"
# `<name>_adv.yaml` need not be written: it is the adversarial training of `<name>.yaml`, from its best weights.
ADVERSARIAL = "_adv.yaml"
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_PACKAGE = Path(__file__).resolve().parent.parent


def zoo_folder() -> Path:
    """Returns the folder of the package's configs: inside it where it was installed, beside it in a checkout."""
    inside = _PACKAGE / "configs"
    return inside if inside.is_dir() else _PACKAGE.parent / "configs"


def zoo_configs() -> list[str]:
    """Return the names of the package's configs, such as "paco/mask_dino_simple.yaml".

    Adversarial trainings that have no file of their own are among them.
    """
    folder = zoo_folder()
    paths = set(folder.rglob("*.yaml"))
    runs = {path for path in paths if "\nOUTPUT_DIR:" in path.read_text() and not path.name.endswith(ADVERSARIAL)}
    paths |= {path.with_name(path.stem + ADVERSARIAL) for path in runs}
    return sorted(path.relative_to(folder).as_posix() for path in paths)


def is_config(path: Path) -> bool:
    """Return whether a config can be read from `path`: a file, or the adversarial training of the file beside it."""
    return path.is_file() or clean_config(path) is not None


def clean_config(path: Path) -> Path | None:
    """Return the config that the adversarial training at `path` begins from, None where there is no such file."""
    clean = path.with_name(path.name.removesuffix(ADVERSARIAL) + ".yaml")
    return clean if path.name.endswith(ADVERSARIAL) and clean.is_file() else None


def find_config(name: str | Path, beside: Path | None = None) -> Path:
    """Finds a config file.

    Args:
        name: a path, or a name among the package's configs, with or without "configs/" before it. A path that exists
            wins. `<name>_adv.yaml` exists where `<name>.yaml` does.
        beside: folder that a relative path starts from; the working directory if None.

    Raises:
        FileNotFoundError: there is neither; names similar configs.
        UserError: the path is not a file.
    """
    path = Path(beside or "", Path(name).expanduser())
    if is_config(path):
        return path
    wanted = Path(name).as_posix().removeprefix("configs/")
    packaged = zoo_folder() / wanted
    if is_config(packaged):
        return packaged
    if path.exists():
        check_file(path, "a config file")
    similar = difflib.get_close_matches(wanted, zoo_configs())
    hint = f" (similar: {', '.join(similar)})" if similar else ""
    raise FileNotFoundError(f"config file {path} does not exist, and the package has no config of that name{hint}")


def read_config_file(path: Path) -> dict:
    """Reads a config file and the files that its `_BASE_` lists; later files win, the file itself last.

    A base is a path relative to the file that names it, or else a name among the package's configs. Nothing in a file
    is executed.

    Raises:
        FileNotFoundError: a base does not exist.
        UserError: a file is not valid yaml or no mapping, has a tag that would run code, replaces a group of keys by a
            value, or names a base that is on the network or that names the file itself.
    """
    return _read(path, ())


def _read(path: Path, above: tuple[Path, ...]) -> dict:
    if path.resolve() in above:
        raise UserError(f"config file {path}: {BASE_KEY} must be another file, got one that begins from this one")
    content = _parse(path) if path.is_file() else _adversarial(path, above)
    bases = content.pop(BASE_KEY, [])
    merged: dict = {}
    for base in bases if isinstance(bases, list) else [bases]:
        if not isinstance(base, str) or "://" in base:
            raise UserError(
                f"config file {path}: {BASE_KEY} must be a file of this machine or one of the package's configs, "
                f"got {base!r}. Download it, read it, and name the copy"
            )
        _merge(_read(find_config(base, path.parent), (*above, path.resolve())), merged, path)
    _merge(content, merged, path)
    return merged


def _adversarial(path: Path, above: tuple[Path, ...]) -> dict:
    """Return the content of the config `path`, which has no file.

    Raises:
        FileNotFoundError: nor has the clean training that it begins from.
        UserError: that one does not say where its weights are.
    """
    clean = clean_config(path)
    if clean is None:
        raise FileNotFoundError(f"config file {path} does not exist")
    output = _read(clean, (*above, path.resolve())).get("OUTPUT_DIR")
    if not isinstance(output, str):
        raise UserError(
            f"config file {path} must exist, or OUTPUT_DIR must be set in {clean}: an adversarial training begins from "
            "the weights in it"
        )
    schedule = path.with_name("schedule_adv.yaml")
    return {
        BASE_KEY: [clean.name, "attacks/pgd10_eps8.yaml", *([schedule.name] if schedule.is_file() else [])],
        "MODEL": {"WEIGHTS": f"{output}/model_best.pth"},
        "OUTPUT_DIR": f"{output}_adv",
    }


def _parse(path: Path) -> dict:
    try:
        content = yaml.load(path.read_bytes(), LOADER)
    except yaml.constructor.ConstructorError as error:
        raise UserError(
            f"config file {path} must hold plain values, got a tag{_place(error)} ({error.problem}): tags can run "
            "code, and are not read"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError) as error:
        what = " ".join(str(getattr(error, "problem", None) or error).split())
        raise UserError(f"config file {path} must be valid yaml, got an error{_place(error)}: {what}") from error
    if not isinstance(content, dict):
        found = "an empty file" if content is None else f"a {type(content).__name__}"
        raise UserError(f"config file {path} must be a mapping of keys to values, got {found}")
    return content


def _place(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    return f" in line {mark.line + 1}, column {mark.column + 1}" if mark else ""


def _merge(content: dict, into: dict, path: Path) -> None:
    for key, value in content.items():
        if isinstance(value, dict) and key in into:
            if not isinstance(into[key], dict):
                raise UserError(f"config file {path}: {key} must be a value as in its base, got a group of keys")
            _merge(value, into[key], path)
        else:
            into[key] = value
