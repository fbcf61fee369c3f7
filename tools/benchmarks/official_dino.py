"""Runs a checkout of IDEA-Research/DINO in its plain-PyTorch path, to stand beside ours in parity and timing.

The checkout is the user's (git clone https://github.com/IDEA-Research/DINO, commit faa8520); nothing of it is ours or
comes with the package. Its compiled extension, and libraries its other backbones need, are replaced by empty modules.
"""

import argparse
import functools
import importlib
import runpy
import sys
from pathlib import Path
from unittest import mock

import torch
import torchvision

# Imported by the checkout, used by none of what runs here.
UNUSED = (
    "MultiScaleDeformableAttention",
    "timm",
    "timm.models",
    "timm.models.layers",
    "addict",
    "yapf",
    "yapf.yapflib",
    "yapf.yapflib.yapf_api",
    "panopticapi",
    "panopticapi.utils",
    "panopticapi.evaluation",
)


def load_official(folder: str | Path, **options) -> tuple[torch.nn.Module, torch.nn.Module]:
    """Model and criterion, with random weights, on the CPU.

    Args:
        folder: the checkout.
        **options: change its config/DINO/DINO_4scale.py, as in `num_queries=100`.

    Raises:
        FileNotFoundError: that is not a checkout.
    """
    config = Path(folder) / "config" / "DINO" / "DINO_4scale.py"
    if not config.is_file():
        raise FileNotFoundError(f"{folder} is not a checkout of IDEA-Research/DINO: it has no {config.name}")
    values = {key: value for key, value in runpy.run_path(str(config)).items() if not key.startswith("_")}
    values |= {"device": "cpu", "frozen_weights": None, "masks": False, "dataset_file": "coco", **options}
    # For the rest of the process: its modules import one another by these names.
    sys.path.insert(0, str(folder))
    sys.modules.update({name: mock.MagicMock() for name in UNUSED if not installed(name)})
    resnet50 = functools.partial(torchvision.models.resnet50)
    with mock.patch("torchvision.models.resnet50", lambda **options: resnet50(**{**options, "pretrained": False})):
        dino = importlib.import_module("models.dino.dino")
        function = importlib.import_module("models.dino.ops.functions.ms_deform_attn_func")
        module = importlib.import_module("models.dino.ops.modules.ms_deform_attn")
        model, criterion, _ = dino.build_dino(argparse.Namespace(**values))

    class Plain:
        """Stands for the compiled function."""

        @staticmethod
        def apply(value, shapes, starts, locations, weights, im2col_step):
            return function.ms_deform_attn_core_pytorch(value, shapes, locations, weights)

    module.MSDeformAttnFunction = Plain
    return model, criterion


def installed(name: str) -> bool:
    try:
        importlib.import_module(name)
    except ImportError:
        return False
    return True
