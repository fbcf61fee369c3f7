"""The features of a backbone, and the ones that a config uses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from detectron2.layers import ShapeSpec

from part_robust.utils.errors import UserError


def check_features(key: str, names: Sequence[str], input_shape: Mapping[str, ShapeSpec]) -> None:
    """Refuses names of features that the backbone does not give.

    Args:
        key: of the config.
        names: of the features that it uses.
        input_shape: of the features that the backbone gives, by name.

    Raises:
        UserError: one is not among them.
    """
    for name in names:
        if name not in input_shape:
            raise UserError(
                f"{key} must name what the backbone gives ({', '.join(input_shape)}), got {name!r}. "
                "MODEL.RESNETS.OUT_FEATURES lists what it is to give"
            )
