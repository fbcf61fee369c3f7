"""Notes that a training leaves in its folder, so that the next training there can compare itself with it."""

from __future__ import annotations

import logging
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.utils import comm

from part_robust.data.compatibility import split_facts
from part_robust.engine.fingerprint import fingerprint, same_training
from part_robust.utils.files import read_json, read_text, write_json, write_text

logger = logging.getLogger(__name__)

STARTED, LAST, BEST = "started.yaml", "last_checkpoint", "best_checkpoint.json"
IMPORTS = "imports.json"


def begin_training(cfg: CfgNode, resume: bool) -> None:
    """Note in OUTPUT_DIR which training begins; every process calls it, rank 0 writes.

    A new training ignores the best value of an earlier one, and its `last_checkpoint`: --resume would continue from it
    if this training is killed before its first checkpoint. The weights themselves stay.
    """
    if comm.is_main_process():
        output = Path(cfg.OUTPUT_DIR)
        wanted = fingerprint(cfg)
        if not resume:
            _forget(output)
        elif not (output / LAST).is_file():
            logger.info("OUTPUT_DIR %s has no checkpoint to resume from: the training begins", output)
        write_text(output / STARTED, wanted)
        if not resume or not (output / LAST).is_file():
            _note_imports(cfg, output)
    comm.synchronize()


def is_begun(output: Path, wanted: str) -> bool:
    """Return whether what was last begun in the folder is the training with the fingerprint `wanted`."""
    started = output / STARTED
    return started.is_file() and same_training(read_text(started, "the config of a training"), wanted)


def imported_again(cfg: CfgNode, resume: bool) -> list[str]:
    """Return sentences about data sets that were imported again since the weights of a run were trained on them.

    Args:
        cfg: complete.
        resume: the run continues from the last checkpoint in OUTPUT_DIR, else it begins with MODEL.WEIGHTS.

    Raises:
        UserError: the note about the imports is broken.
    """
    folder = Path(cfg.OUTPUT_DIR) if resume else Path(cfg.MODEL.WEIGHTS).parent
    note = folder / IMPORTS
    has_note = note.is_file() and (resume or cfg.MODEL.WEIGHTS)
    trained = read_json(note, "delete it, if the training sets are still those of the weights") if has_note else {}
    sentences = []
    for name in dict.fromkeys([*cfg.DATASETS.TRAIN, *cfg.DATASETS.VAL, *cfg.DATASETS.TEST]) if trained else ():
        facts = split_facts(name)
        earlier = trained.get(str(facts.path.resolve().parent)) if facts is not None and facts.import_id else None
        if facts is not None and earlier not in (None, facts.import_id):
            sentences.append(
                f"dataset {name!r} was imported again since the training in {folder} began (config_hash): where its "
                "images are divided otherwise now, some that are tested on have been trained on. Train again to be sure"
            )
    return sentences


def _note_imports(cfg: CfgNode, output: Path) -> None:
    """Write {folder of the split files: id of their import} of the training sets that an import has written."""
    found = [facts for name in cfg.DATASETS.TRAIN if (facts := split_facts(name)) is not None and facts.import_id]
    (output / IMPORTS).unlink(missing_ok=True)
    if found:
        write_json(output / IMPORTS, {str(facts.path.resolve().parent): facts.import_id for facts in found})


def _forget(output: Path) -> None:
    (output / BEST).unlink(missing_ok=True)
    last = output / LAST
    if last.is_file():
        logger.warning(
            "OUTPUT_DIR %s holds an earlier training: --resume would have continued from its %s, this is a new one",
            output,
            last.read_text(errors="replace").strip(),
        )
        last.unlink()
