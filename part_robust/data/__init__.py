"""Part data: the json format, registration, mapping to model inputs."""

from part_robust.data.builtin import register_builtin
from part_robust.data.mapper import PartDatasetMapper
from part_robust.data.register import get_taxonomy, register_from_config, register_part_dataset
from part_robust.data.taxonomy import PartTaxonomy

__all__ = [
    "PartDatasetMapper",
    "PartTaxonomy",
    "get_taxonomy",
    "register_builtin",
    "register_from_config",
    "register_part_dataset",
]
