"""The finished batches of a long evaluation on disk, so that an interruption costs one batch.

A batch is a dict of arrays. It is written whole or not at all; the numbers of the evaluation are computed from the
batches alone, so a resumed evaluation gives what the uninterrupted one would have given.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from part_robust.utils.errors import UserError
from part_robust.utils.files import check_file, read_json, replacing, write_bytes

logger = logging.getLogger(__name__)

BatchArrays = dict[str, np.ndarray]

# The array of a batch's file that holds the hash of the identity.
KEY = "journal.identity"


class JournalMismatch(UserError):
    """The journal in the folder is of another evaluation."""


class Journal:
    """A folder with `journal.json`, the identity of the evaluation, and a file for each batch.

    `batch_<hash>.npz` are those of the pass over all images, `round_<number>_<hash>.npz` those of later rounds.
    Every batch holds a hash of the identity, so that batches of two evaluations that write into one folder do not mix.
    """

    def __init__(self, folder: str | Path, identity: Mapping[str, str] | None = None) -> None:
        """Set the folder, and the evaluation whose batches count.

        Args:
            folder: of the journal alone.
            identity: of the evaluation that writes batches or reads its own; None to read all there are.
        """
        self.folder = Path(folder)
        self._key = None if identity is None else _hash(json.dumps(dict(identity), sort_keys=True))

    @classmethod
    def open(cls, folder: str | Path, identity: Mapping[str, str], resume: bool) -> Journal:
        """The journal of an evaluation, with the batches that are done if `resume`.

        Without `resume` an older journal moves aside, to `<folder>.previous`, where the next one replaces it.

        Args:
            folder: of the journal alone.
            identity: what must be the same for batches to belong together: name -> value, both for people's eyes.
            resume: keep the batches that exist and continue after them.

        Raises:
            JournalMismatch: with `resume`, the folder holds another evaluation's batches.
        """
        journal = cls(folder, identity)
        found = journal.identity() if resume else None
        if found is not None:
            changed = sorted(key for key in {*found, *identity} if found.get(key) != identity.get(key))
            if changed:
                raise JournalMismatch(
                    f"{journal.folder} holds the finished batches of another evaluation "
                    f"({', '.join(changed)} changed since): results must not be mixed. Evaluate without --resume to "
                    "start anew, choose another OUTPUT_DIR, or go back to the old settings"
                )
        elif (journal.folder / "journal.json").is_file():
            previous = journal.folder.with_name(journal.folder.name + ".previous")
            shutil.rmtree(previous, ignore_errors=True)
            os.replace(journal.folder, previous)
            logger.warning("An earlier evaluation's batches moved to %s; --resume would have gone on", previous)
        journal.folder.mkdir(parents=True, exist_ok=True)
        for unfinished in journal.folder.glob("*.tmp"):
            unfinished.unlink()
        write_bytes(journal.folder / "journal.json", json.dumps(dict(identity), indent=1).encode())
        return journal

    def identity(self) -> dict[str, str] | None:
        """Return the identity that `open` stored when the journal was created; None where there is no journal.

        Raises:
            UserError: journal.json is damaged.
        """
        path = self.folder / "journal.json"
        remedy = "the evaluation cannot be resumed, start it anew without --resume"
        if not path.is_file():
            return None
        found = read_json(path, remedy)
        if not isinstance(found, dict):
            raise UserError(f"{path} must be a json object, got a {type(found).__name__}: {remedy}")
        return found

    def write(self, batch: BatchArrays, image_ids: Sequence[int], name: str = "batch") -> None:
        """Adds a batch; the file's name comes from its images and the identity, so no two processes write one file.

        Args:
            batch: its arrays.
            image_ids: of its images.
            name: beginning of the file's name.
        """
        digest = _hash(",".join(map(str, image_ids)) + (self._key or ""))[:16]
        key = {} if self._key is None else {KEY: np.array(self._key)}
        path = self.folder / f"{name}_{digest}.npz"
        with replacing(path, flushed=True) as temporary, open(temporary, "wb") as file:
            np.savez(file, **batch, **key)  # type: ignore[arg-type]  # no array is called allow_pickle

    def batches(self, name: str = "batch") -> list[BatchArrays]:
        """All batches of this evaluation whose files' names begin so, in a fixed order.

        A file that cannot be read is deleted, so its images are evaluated again. Batches of another identity are left
        out; those that an earlier version wrote have none and are taken, as `open` has compared journal.json.
        """
        found, others = [], 0
        for path in sorted(self.folder.glob(f"{name}_*.npz")):
            try:
                check_file(path)
                with np.load(path, allow_pickle=False) as file:
                    batch = {key: file[key] for key in file.files}
                if "images.image_id" not in batch:
                    raise ValueError("it has no images.image_id")
            except (zipfile.BadZipFile, OSError, ValueError, EOFError) as error:
                logger.warning("%s cannot be read (%s): its images are evaluated again", path, error)
                path.unlink()
                continue
            key = batch.pop(KEY, None)
            if self._key is None or key is None or str(key) == self._key:
                found.append(batch)
            else:
                others += 1
        if others:
            logger.warning("%s: %d batches are of another evaluation and are left out", self.folder, others)
        return found


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
