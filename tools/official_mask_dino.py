"""Runs a checkout of IDEA-Research/MaskDINO in its plain-PyTorch path, to stand beside ours in parity and timing.

The checkout is the user's (git clone https://github.com/IDEA-Research/MaskDINO, commit 3831d85); nothing of it is ours
or comes with the package. Its compiled extension, and libraries its data code needs, are replaced by empty modules.
"""

import importlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest import mock

import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from detectron2.projects.deeplab import add_deeplab_config
from official_dino import hide_missing

# Imported by the checkout, used by none of what runs here.
UNUSED = (
    "MultiScaleDeformableAttention",
    "timm",
    "timm.models",
    "timm.models.layers",
    "panopticapi",
    "panopticapi.utils",
    "panopticapi.evaluation",
)

SEMANTIC = "configs/cityscapes/semantic-segmentation/maskdino_R50_bs16_90k_steplr.yaml"
INSTANCE = "configs/coco/instance-segmentation/maskdino_R50_bs16_50ep_3s_dowsample1_2048.yaml"


def load_official(folder: str | Path, config: str = SEMANTIC, opts: Sequence = ()) -> torch.nn.Module:
    """The model, criterion included, with random weights, on the CPU.

    Args:
        folder: the checkout.
        config: a file of it.
        opts: KEY VALUE pairs for its config, as in ["MODEL.MaskDINO.DEC_LAYERS", 1].

    Raises:
        FileNotFoundError: that is no checkout.
    """
    if not (Path(folder) / config).is_file():
        raise FileNotFoundError(f"{folder} is no checkout of IDEA-Research/MaskDINO: it has no {config}")
    # For the rest of the process: its modules import one another by these names.
    sys.path.insert(0, str(folder))
    hide_missing(UNUSED)
    package = importlib.import_module("maskdino")
    function = importlib.import_module("maskdino.modeling.pixel_decoder.ops.functions.ms_deform_attn_func")
    module = importlib.import_module("maskdino.modeling.pixel_decoder.ops.modules.ms_deform_attn")

    class Plain:
        """Stands for the compiled function."""

        @staticmethod
        def apply(value, shapes, starts, locations, weights, im2col_step):
            return function.ms_deform_attn_core_pytorch(value, shapes, locations, weights)

    module.MSDeformAttnFunction = Plain
    cfg = get_cfg()
    add_deeplab_config(cfg)
    package.add_maskdino_config(cfg)
    cfg.merge_from_file(str(Path(folder) / config))
    if cfg.MODEL.RESNETS.NORM == "SyncBN":
        cfg.MODEL.RESNETS.NORM = "BN"  # the same on one device, and runs on a CPU
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", *opts])
    return build_model(cfg)


@contextmanager
def on_cpu() -> Iterator[None]:
    """Within, what the checkout sends to "cuda" stays where it is."""
    to = torch.Tensor.to

    def stay(tensor: torch.Tensor, *args, **options) -> torch.Tensor:
        return to(tensor, *("cpu" if isinstance(x, str) and x == "cuda" else x for x in args), **options)

    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(torch.Tensor, "to", stay))
        stack.enter_context(mock.patch.object(torch.Tensor, "cuda", lambda self: self))
        yield
