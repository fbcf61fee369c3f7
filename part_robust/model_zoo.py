"""The package's configs and models by name, with the functions of `detectron2.model_zoo`.

from part_robust import model_zoo

model = model_zoo.get("paco/mask_dino_simple.yaml", device="cpu")
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
import yaml
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import nn

from part_robust.config import find_config, zoo_configs, zoo_folder
from part_robust.config.files import read_config_file
from part_robust.run_config import load_config
from part_robust.utils.files import write_text

__all__ = ["get", "get_checkpoint_url", "get_config", "get_config_file", "list_configs"]


def list_configs() -> list[str]:
    """Returns the names of all configs, such as "paco/mask_dino_simple.yaml"."""
    return zoo_configs()


def get_config_file(config_path: str) -> str:
    """Return the path of one of the package's configs, as a file that `CfgNode.merge_from_file` can read.

    Adversarial trainings that have no file of their own are written, with all their keys, to the temporary folder.

    Args:
        config_path: its name, such as "paco/mask_dino_simple.yaml".

    Raises:
        FileNotFoundError: there is no such config; names similar ones.
    """
    path = find_config(config_path, zoo_folder())
    if path.is_file():
        return str(path)
    written = Path(tempfile.gettempdir(), "part_robust_configs", *path.parts[-2:])
    return str(write_text(written, yaml.safe_dump(read_config_file(path))))


def get_config(config_path: str, trained: bool = False) -> CfgNode:
    """Returns the complete config of a model (`part_robust.load_config`).

    Args:
        config_path: its name.
        trained: MODEL.WEIGHTS is to be the trained model; else it stays what the config says, for most configs weights
            of an ImageNet classifier.

    Raises:
        FileNotFoundError: there is no such config.
        RuntimeError: `trained`, as no weights are published.
    """
    file = find_config(config_path, zoo_folder())
    return load_config(file, ["MODEL.WEIGHTS", get_checkpoint_url(config_path)] if trained else ())


def get_checkpoint_url(config_path: str) -> str:
    """Returns where the weights of a trained model can be loaded from.

    Raises:
        FileNotFoundError: there is no such config.
        RuntimeError: no weights are published; says how to train them.
    """
    find_config(config_path, zoo_folder())
    raise RuntimeError(
        f"No trained weights of {config_path} are published. Train them: part-robust train --config-file {config_path}"
    )


def get(config_path: str, trained: bool = False, device: str | None = None) -> nn.Module:
    """Builds a model and loads the weights that its config names.

    Args:
        config_path: name of its config.
        trained: as in `get_config`.
        device: "cpu", "cuda", ...; None takes the config's, or the CPU where CUDA is not available.

    Returns:
        A `PartClassifier` in training mode.

    Raises:
        FileNotFoundError: there is no such config, or MODEL.WEIGHTS does not exist, as for an adversarial training that
            begins from a clean one.
        RuntimeError: `trained`, as no weights are published.
    """
    # Not at the top: the training code is not needed for configs, and slower to import than all the rest.
    from part_robust.engine.checkpoint import PartCheckpointer

    cfg = get_config(config_path, trained)
    if device is None and not torch.cuda.is_available():
        device = "cpu"
    if device is not None:
        cfg.MODEL.DEVICE = device
    model = build_model(cfg)
    PartCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    return model
