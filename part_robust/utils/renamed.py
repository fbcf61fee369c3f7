"""Old names of attributes, which keep working for one release."""

from __future__ import annotations

from typing import Any


def renamed(name: str) -> Any:
    """Return a property that reads and writes the attribute `name`: the value of an attribute's old name."""

    def write(owner: Any, value: Any) -> None:
        setattr(owner, name, value)

    return property(lambda owner: getattr(owner, name), write, doc=f"Old name of `{name}`.")
