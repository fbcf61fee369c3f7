"""Checkpoints that are whole on disk, and never load half of what they should in silence."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from part_robust.engine import packaged_weights  # noqa: F401  (registration of package://)
from part_robust.modeling.convert_imagenet import detect_imagenet_layout, rename
from part_robust.modeling.external.head import reads_own_file
from part_robust.utils.errors import UserError, as_user_errors
from part_robust.utils.files import check_file, read_text, replacing, write_text
from part_robust.utils.safe_loading import check_pickle, load_state

logger = logging.getLogger(__name__)


class CheckpointMismatch(UserError):
    """The file is a checkpoint of something else."""


class PartCheckpointer(DetectionCheckpointer):
    """Saves atomically; loading tells apart the three uses.

    - Resuming or `strict` (evaluation): every weight of the model must be in the file, with its shape.
    - Starting a training: the backbone must be complete. Other missing weights, and heads for another number of classes
      or parts, start from random values, and a warning lists them.

    Where a file holds an `average` of the weights (SOLVER.EMA) beside the trained ones, resuming takes both, and the
    other uses take the average as the model. Files are read so that nothing in them runs (utils/safe_loading.py).
    """

    def __init__(self, *args: Any, strict: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.strict = strict
        self._complete = strict
        self._resuming = False

    def save(self, name: str, **kwargs: Any) -> None:
        """Writes `<save_dir>/<name>.pth` and makes it the one that `--resume` takes."""
        self.write(name, **kwargs)
        if self.save_dir and self.save_to_disk:
            self.tag_last_checkpoint(f"{name}.pth")

    def write(self, name: str, without: Sequence[str] = (), **kwargs: Any) -> None:
        """Write `<save_dir>/<name>.pth`, without the checkpointables named in `without`.

        It is written under another name first: a killed process or a full disk leaves the old file as it was.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        data = {"model": self.model.state_dict()}
        data.update({key: part.state_dict() for key, part in self.checkpointables.items() if key not in without})
        data.update(kwargs)
        path = os.path.join(self.save_dir, f"{name}.pth")
        logger.info("Saving checkpoint to %s", path)
        with replacing(path) as temporary, open(temporary, "wb") as file:
            torch.save(data, file)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        write_text(os.path.join(self.save_dir, "last_checkpoint"), last_filename_basename)

    def get_checkpoint_file(self) -> str:
        """The last checkpoint, as `last_checkpoint` names it; "" where there is none.

        Raises:
            UserError: that file is damaged, or names a checkpoint that is gone.
        """
        path = os.path.join(self.save_dir, "last_checkpoint")
        if not os.path.exists(path):
            return ""
        name = read_text(path, "the name of a checkpoint beside it").strip()
        if not name:
            raise UserError(f"{path} must be the name of a checkpoint beside it, got an empty file")
        file = os.path.join(self.save_dir, name)
        if not os.path.exists(file):
            raise UserError(
                f"{path} names {name}, which does not exist: write the name of another checkpoint of {self.save_dir} "
                "into it, such as model_best.pth"
            )
        return file

    def load(self, path: str, checkpointables: Sequence[str] | None = None) -> dict:
        """Load a checkpoint, and account for every weight of the model.

        A model that read its own file when it was built (`ExternalHead`) stays as it is.

        Raises:
            FileNotFoundError: the weights are not found.
            CheckpointMismatch: they are of another model.
            UnsafeCheckpoint: the file holds more than tensors and plain values.
            NoCheckpoint: the file is not a checkpoint, or not whole.
            UserError: `strict`, and weights are not finite numbers.
        """
        if reads_own_file(self.model):
            return {}
        if path:
            try:
                local = self.path_manager.get_local_path(path.split("?")[0])
                found = self.path_manager.isfile(path.split("?")[0])
            except Exception as error:  # network errors come in many types
                raise FileNotFoundError(_not_found(path, str(error))) from error
            if not found and os.path.exists(local):
                check_file(local, "MODEL.WEIGHTS, a checkpoint")
            if not found:
                raise FileNotFoundError(_not_found(path, "no such file"))
        self._complete = self.strict or checkpointables is None
        self._resuming = checkpointables is None and not self.strict
        with as_user_errors():  # such as values that are not tensors
            content = super().load(path, checkpointables)
        if path and self.strict:
            check_finite(self.model, path)
        return content

    def _load_file(self, filename: str) -> dict:
        if filename.endswith(".pkl"):
            check_pickle(filename)
        if filename.endswith(".pyth"):  # pycls; detectron2 would run what is in the file
            state = load_state(filename)
            if "model_state" not in state:
                raise CheckpointMismatch(f"{filename} must hold 'model_state' as pycls writes it, got {sorted(state)}")
            weights = {k: v for k, v in state["model_state"].items() if not k.endswith("num_batches_tracked")}
            return {"model": weights, "__author__": "pycls", "matching_heuristics": True}
        return self._converted(super()._load_file(filename), filename)

    def _converted(self, loaded: dict, filename: str) -> dict:
        """Rename the weights of a packaged ImageNet classifier for the backbone; others stay as they are.

        Raises:
            CheckpointMismatch: the backbone is another architecture, or sees images of another normalisation.
        """
        model = self.model.module if isinstance(self.model, DistributedDataParallel) else self.model
        state, model_state = loaded["model"], model.state_dict()
        if detect_imagenet_layout(state, model_state) != "efficientnet_lite":
            return loaded
        mean, std = (model.get_buffer(name).flatten().tolist() for name in ("pixel_mean", "pixel_std"))
        try:
            weights, reports = rename(state, model_state, "efficientnet_lite", mean, std)
        except ValueError as error:
            raise CheckpointMismatch(f"MODEL.WEIGHTS {filename}: {error}") from error
        counts = Counter(report.action for report in reports)
        logger.info(
            "ImageNet weights of %s: %d of its %d tensors are the backbone's, %d are of the classifier behind it",
            *(os.path.basename(filename), counts["renamed"], len(state), counts["dropped"]),
        )
        for report in reports:
            logger.debug("%s: %s %s %s", report.action, report.key, report.ours, report.reason)
        return {**loaded, "model": weights}

    def _torch_load(self, f: str) -> Any:
        return load_state(f)

    def _load_model(self, checkpoint: Any) -> Any:
        if not self._resuming and "average" in checkpoint:
            logger.info("The checkpoint's averaged weights are taken")
            checkpoint["model"] = checkpoint.pop("average")["model"]
        total = [key for key in self.model.state_dict() if not key.endswith("num_batches_tracked")]
        incompatible = super()._load_model(checkpoint)
        wrong_shape = [key for key, *_ in incompatible.incorrect_shapes]
        lacking = [key for key in incompatible.missing_keys if not key.endswith("num_batches_tracked")]
        lacking = sorted({key.removeprefix("module.") for key in [*lacking, *wrong_shape]})
        if not lacking:
            return incompatible
        fatal = lacking if self._complete else [key for key in lacking if key.startswith("backbone.")]
        if fatal:
            shapes = f"; {len(wrong_shape)} have another shape, first {wrong_shape[0]}" if wrong_shape else ""
            raise CheckpointMismatch(
                f"the checkpoint is of another model: {len(fatal)} of {len(total)} weights are not in it, "
                f"first {fatal[0]}{shapes}. Give MODEL.WEIGHTS a file that fits this config "
                "(or MODEL.WEIGHTS '' to start from random values)"
            )
        logger.warning(
            "not in the checkpoint, or of another shape there; these start from random values: %s",
            _summarise(lacking),
        )
        return incompatible

    def _log_incompatible_keys(self, incompatible: Any) -> None:
        """Lists keys in log.txt; `_load_model` says on the terminal which weights start from random values."""
        logger.debug("Not in the checkpoint: %s", ", ".join(incompatible.missing_keys))
        logger.debug("Of another shape (name, checkpoint, model): %s", incompatible.incorrect_shapes)
        logger.debug("In the checkpoint alone: %s", ", ".join(incompatible.unexpected_keys))
        if incompatible.unexpected_keys:
            logger.warning("in the checkpoint, and not of this model: %s", _summarise(incompatible.unexpected_keys))


def check_finite(model: nn.Module, path: str) -> None:
    """Check that all weights and statistics of a model are finite.

    Raises:
        UserError: weights or statistics are not finite numbers: results would mean nothing.
    """
    state = {key: value for key, value in model.state_dict().items() if value.is_floating_point()}
    bad = [key for key, value in state.items() if not bool(torch.isfinite(value).all())]
    if bad:
        raise UserError(
            f"MODEL.WEIGHTS {path} must hold finite numbers, got NaN or infinity in {len(bad)} of {len(state)} "
            f"tensors, first {bad[0]}. Take an earlier checkpoint"
        )


def _not_found(path: str, reason: str) -> str:
    return f"MODEL.WEIGHTS {path} is not found ({reason}). Give a file, or MODEL.WEIGHTS '' for random weights"


def _summarise(keys: Sequence[str]) -> str:
    """Counts by the first two components: "head.layers (8 weights), ..."."""
    counts: dict[str, int] = {}
    for key in keys:
        prefix = ".".join(key.split(".")[:2])
        counts[prefix] = counts.get(prefix, 0) + 1
    return ", ".join(f"{prefix} ({count} weights)" for prefix, count in counts.items())
