"""Part-based image classifiers that withstand adversarial images, as a Detectron2 extension.

Importing it registers models, heads, attacks and the built-in data sets: `detectron2.modeling.build_model` builds them.
"""

try:
    import detectron2  # noqa: F401
except ImportError as error:
    raise ImportError(
        "part_robust needs detectron2, which no package registry has. Install it from its repository: "
        "pip install --no-build-isolation git+https://github.com/facebookresearch/detectron2.git"
    ) from error

from part_robust import model_zoo, modeling  # noqa: F401  (modeling: registration)
from part_robust.attacks import build_attack
from part_robust.config import get_part_robust_cfg
from part_robust.data import register_builtin, register_part_dataset
from part_robust.run_config import load_config

__version__ = "0.1.0"
__all__ = [
    "build_attack",
    "get_part_robust_cfg",
    "load_config",
    "model_zoo",
    "register_part_dataset",
]

register_builtin()
