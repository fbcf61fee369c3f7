"""Which output of a classifier from elsewhere means which class of the data set, by their names."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from part_robust.utils.errors import UserError
from part_robust.utils.files import read_json, read_text

SHOWN = 5


def read_output_names(path: str | Path) -> list[str]:
    """Read the name of each output of a model, in the order of the outputs.

    Args:
        path: of a text file with a name a line; or of a json: a list of names, or an object from the number of an
            output to its name, or to a list whose last entry is the name, as ImageNet's class index has it.

    Raises:
        UserError: the file holds something else, or no names of some outputs.
        OSError: it cannot be read.
    """
    if Path(path).suffix != ".json":
        lines = read_text(path, "names of classes, one a line").splitlines()
        return [line.strip() for line in lines if line.strip()]
    content = read_json(path, "give a text file with the name of each output, one a line")
    if isinstance(content, dict):
        if sorted(content) != sorted(str(number) for number in range(len(content))):
            raise UserError(
                f"--classes {path} must have a name for each output, 0 to {len(content) - 1}, got the keys "
                f"{json.dumps(list(content)[:SHOWN])}"
            )
        content = [content[str(number)] for number in range(len(content))]
    if not isinstance(content, list):
        raise UserError(f"--classes {path} must be a list of names, got a {type(content).__name__}")
    return [_name(entry) for entry in content]


def _name(entry: Any) -> str:
    return str(entry[-1] if isinstance(entry, list) and entry else entry)


def class_indices(outputs: Sequence[str], classes: Sequence[str]) -> list[int | list[int]]:
    """Return the output of each class of the data set; a list of outputs where several have its name.

    Names are compared without case, and an underscore is a space.

    Args:
        outputs: names of the model's outputs, in their order.
        classes: names of the data set's classes, in their order.

    Raises:
        UserError: a class has no output of its name.
    """
    places: dict[str, list[int]] = {}
    for index, name in enumerate(outputs):
        places.setdefault(_plain(name), []).append(index)
    missing = [name for name in classes if _plain(name) not in places]
    if missing:
        raise UserError(
            f"--classes FILE must have the names of the data set's {len(classes)} classes among those of the outputs, "
            f"got none for {len(missing)} of them: {_some(missing)}. The {len(outputs)} outputs are {_some(outputs)}"
        )
    found = [places[_plain(name)] for name in classes]
    return [own[0] if len(own) == 1 else own for own in found]


def _plain(name: str) -> str:
    return " ".join(name.replace("_", " ").casefold().split())


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
