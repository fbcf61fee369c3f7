"""Runs a checkout of IDEA-Research/MaskDINO in its plain-PyTorch path, to stand beside ours in parity and timing.

The checkout is the user's (git clone https://github.com/IDEA-Research/MaskDINO, commit 3831d85); nothing of it is ours
or comes with the package. Its compiled extension, its data sets and libraries of its other backbones are left out.
"""

import importlib
import sys
import types
from pathlib import Path
from unittest import mock

import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from detectron2.projects.deeplab import add_deeplab_config

from benchmarks.official_dino import UNUSED, installed

SEMANTIC = "configs/cityscapes/semantic-segmentation/maskdino_R50_bs16_90k_steplr.yaml"
INSTANCE = "configs/coco/instance-segmentation/maskdino_R50_bs16_50ep_3s_dowsample1_2048.yaml"


def load_official(folder: str | Path, config: str = SEMANTIC, opts: tuple = ()) -> torch.nn.Module:
    """The whole model with its criterion, with random weights, on the CPU.

    Args:
        folder: the checkout.
        config: of the checkout.
        opts: KEY VALUE pairs on top.

    Raises:
        FileNotFoundError: that is not a checkout.
    """
    if not (Path(folder) / config).is_file():
        raise FileNotFoundError(f"{folder} is not a checkout of IDEA-Research/MaskDINO: it has no {config}")
    sys.modules.update({name: mock.MagicMock() for name in UNUSED if not installed(name)})
    # The package without its own __init__, which registers data sets and test-time augmentation.
    package = types.ModuleType("maskdino")
    package.__path__ = [str(Path(folder) / "maskdino")]
    sys.modules["maskdino"] = package
    module = importlib.import_module("maskdino.modeling.pixel_decoder.ops.modules.ms_deform_attn")

    class Plain:
        """Stands for the compiled function."""

        @staticmethod
        def apply(value, shapes, starts, locations, weights, im2col_step):
            return module.ms_deform_attn_core_pytorch(value, shapes, locations, weights)

    module.MSDeformAttnFunction = Plain
    if not torch.cuda.is_available():
        _stay_on_the_cpu()
    importlib.import_module("maskdino.maskdino")
    cfg = get_cfg()
    add_deeplab_config(cfg)
    importlib.import_module("maskdino.config").add_maskdino_config(cfg)
    cfg.merge_from_file(str(Path(folder) / config))
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.RESNETS.NORM", "FrozenBN", *opts])
    return build_model(cfg)


def _stay_on_the_cpu() -> None:
    """Its denoising queries go to "cuda" whatever the model's device: here they stay, for the rest of the process."""
    to = torch.Tensor.to
    torch.Tensor.cuda = lambda self, *args, **kwargs: self
    torch.Tensor.to = lambda self, *args, **kwargs: self if args[:1] == ("cuda",) else to(self, *args, **kwargs)
