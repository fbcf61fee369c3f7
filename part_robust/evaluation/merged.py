"""All batches of an evaluation together, with the results of later rounds in the place of those they replace.

Letters: N images, M pairs of an image and a label that occurs in it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from detectron2.evaluation import DatasetEvaluators

from part_robust.evaluation.journal import BatchArrays
from part_robust.evaluation.named_arrays import (
    ClassArrays,
    CostArrays,
    ImageArrays,
    Kind,
    LabelArrays,
    PictureArrays,
    RegionArrays,
    TierArrays,
    TotalCost,
)

# Before the names of arrays of images that a round broke: they replace those of earlier.
BROKEN = "broken."


@dataclass(frozen=True)
class Round:
    """A round of a tier after its first pass (evaluation/rounds.py).

    Attributes:
        tier: name.
        image_ids: of its images.
        first: `TierArrays.broken_by` of the first of its attacks.
        names: of its attacks, as the tier has them.
        restart: 1 for the first restart after the first pass; 0 for attacks on a sample.
        number: of the evaluation's rounds, from 1.
        regions: of a tier of local attacks: (image id, region, top, left) of each region that is attacked.
        settled: of such a tier: ids of images that are broken already, in another region.
    """

    tier: str
    image_ids: tuple[int, ...]
    first: int
    names: tuple[str, ...]
    restart: int = 0
    number: int = 0
    regions: tuple[tuple[int, int, int, int], ...] = ()
    settled: frozenset[int] = frozenset()


class Merged:
    """All batches of an evaluation together."""

    def __init__(
        self, batches: Sequence[BatchArrays], rounds: Sequence[Round] = (), changes: Sequence[BatchArrays] = ()
    ) -> None:
        """Merge the arrays of all batches.

        Args:
            batches: of the first pass over all images.
            rounds: finished, in their order.
            changes: batches of these rounds, in the same order.

        Raises:
            ValueError: there are none, so the data set is empty; an image occurs twice.
        """
        if not batches:
            raise ValueError("no image was evaluated: is the data set empty?")
        self.batches = batches
        self.rounds = tuple(rounds)
        self._changes = tuple(changes)
        # What rounds found of all their images, and what replaces the results of those that they broke.
        self._tried = [{name: x for name, x in each.items() if not name.startswith(BROKEN)} for each in changes]
        replaced = [{name[len(BROKEN) :]: x for name, x in each.items() if name.startswith(BROKEN)} for each in changes]
        self._replaced = [each for each in replaced if each]
        ids = np.concatenate([batch["images.image_id"] for batch in batches])
        if len(np.unique(ids)) < len(ids):
            raise ValueError("an image was evaluated twice: is its image_id that of another image, too?")
        order = np.argsort(ids)
        names = [name for name in batches[0] if name.startswith("images.")]
        names += sorted({name for batch in batches for name in batch if name.startswith("images.")} - set(names))
        # Sorted by image id: the same for any number of processes and any order.
        self._arrays = {name: self._stacked(name)[order] for name in names}
        for change in (*self._tried, *self._replaced):
            self._write(change)
        self.images = {name.removeprefix("images."): array for name, array in self._arrays.items()}

    def _stacked(self, name: str) -> np.ndarray:
        """Batches in which an attack had nothing to do have no entry for it."""
        example = next(batch[name] for batch in self.batches if name in batch)
        absent = np.nan if example.dtype.kind == "f" else 0
        return np.concatenate(
            [
                batch.get(name, np.full((len(batch["images.image_id"]), *example.shape[1:]), absent, example.dtype))
                for batch in self.batches
            ]
        )

    def after(self, finished: Round, changes: Sequence[BatchArrays]) -> Merged:
        """Return all results after one more round, whose batches are `changes`."""
        return Merged(self.batches, (*self.rounds, finished), (*self._changes, *changes))

    def _write(self, change: BatchArrays) -> None:
        """Write a round's results of images over those of the first pass."""
        rows = np.searchsorted(self._arrays["images.image_id"], change["images.image_id"])
        for name, array in change.items():
            if name.startswith("images."):
                if name not in self._arrays:
                    absent = np.nan if array.dtype.kind == "f" else 0
                    self._arrays[name] = np.full((len(self), *array.shape[1:]), absent, array.dtype)
                self._arrays[name][rows] = array

    def __len__(self) -> int:
        return len(self._arrays["images.image_id"])

    @property
    def image(self) -> ImageArrays:
        """The images, ascending image ids, as all results of images."""
        return ImageArrays.read(self._arrays)

    def find(self, kind: type[Kind], name: str) -> Kind | None:
        """Results of images, of a row, tier, attack or radius; None where there are none.

        Args:
            kind: of the results.
            name: of the row, tier, attack or radius.
        """
        return kind.find(self._arrays, name)

    def read(self, kind: type[Kind], name: str) -> Kind:
        """Same as `find`.

        Raises:
            KeyError: there are none.
        """
        return kind.read(self._arrays, name)

    def right(self, row: str) -> np.ndarray:
        """Return bool (N,), whether the class is right on a row's images."""
        return self.read(ClassArrays, row).prediction == self.image.label

    def still_right(self, tier: str) -> np.ndarray:
        """Return bool (N,), whether the class is right on a tier's images as scored last, and no attack broke them."""
        return self.right(tier) & (self.read(TierArrays, tier).broken_by < 0)

    def broken_in(self, finished: Round) -> int:
        """Return how many images a round broke; of a tier of local attacks, of how many it broke a region."""
        regions = self.tried(RegionArrays, finished.tier)
        if regions is not None:
            ids, broken_by = regions.image_id, regions.broken_by
        else:
            own = np.isin(self.image.image_id, finished.image_ids)
            ids, broken_by = self.image.image_id[own], self.read(TierArrays, finished.tier).broken_by[own]
        by = broken_by - finished.first
        return len(np.unique(ids[(by >= 0) & (by < len(finished.names))]))

    def labels(self, row: str) -> LabelArrays:
        """Pixels of the images of a row by label, one batch after the other."""
        names, changed = LabelArrays.names(row), self._changed(row)
        return LabelArrays.read(self._concatenated(names.values(), names["image_id"], changed), row)

    def together(self, kind: type[Kind], name: str = "") -> Kind | None:
        """Arrays of pairs of an image and something in it, one batch after the other; None where there are none."""
        names = kind.names(name)
        changed = np.concatenate([each.get(names["image_id"], []) for each in ({}, *self._replaced)])
        return kind.find(self._concatenated(names.values(), names["image_id"], changed), name)

    def tried(self, kind: type[Kind], name: str) -> Kind | None:
        """Same as `together` of the finished rounds alone, in their order."""
        names = kind.names(name)
        pieces = [each for each in self._tried if names["image_id"] in each]
        keys = names.values() if pieces else ()
        return kind.find({key: np.concatenate([each[key] for each in pieces]) for key in keys}, name)

    def pictures(self) -> PictureArrays | None:
        """Images that may become pictures, one batch after the other; None where there are none."""
        return self.together(PictureArrays)

    def cost(self, name: str) -> TotalCost:
        """Cost of an attack, or of everything else as "evaluation"."""
        totals = {field: self.total(key) for field, key in CostArrays.names(name).items()}
        history, seconds = totals.pop("history"), totals.pop("seconds")
        numbers = {field: int(total) for field, total in totals.items()}
        return TotalCost(**numbers, seconds=float(seconds), history=history if np.ndim(history) else None)

    def _changed(self, row: str) -> np.ndarray:
        """Ids of images whose results as images of a row were replaced."""
        found = [each["images.image_id"] for each in self._replaced if f"images.broken_by.{row}" in each]
        return np.concatenate([np.zeros(0, dtype=np.int64), *found])

    def _concatenated(self, names: Iterable[str], id_name: str, changed: np.ndarray) -> BatchArrays:
        """The arrays of these names that any batch has, one batch after the other, without replaced images."""
        names = list(names)
        pieces = [{name: batch[name] for name in names if name in batch} for batch in self.batches]
        if len(changed):
            kept = [~np.isin(piece.get(id_name, []), changed) for piece in pieces]
            pieces = [
                {name: array[keep] for name, array in piece.items()} for piece, keep in zip(pieces, kept, strict=True)
            ]
        pieces += [{name: each[name] for name in names if name in each} for each in self._replaced]
        found = {name: [piece[name] for piece in pieces if name in piece] for name in names}
        return {name: np.concatenate(arrays) for name, arrays in found.items() if arrays}

    def total(self, name: str) -> np.ndarray:
        """Sum over the batches; 0 where none has it."""
        return np.sum([batch[name] for batch in (*self.batches, *self._tried) if name in batch], axis=0)

    def score(self, row: str, evaluators: DatasetEvaluators) -> dict[str, dict[str, float]]:
        """Task -> metrics of a row, computed without any collective, as rank 0 has all batches."""
        results: dict[str, dict[str, float]] = {}
        for number, evaluator in enumerate(evaluators._evaluators):
            results |= evaluator.score_merged(list(self._partials(row, number)))
        return results

    def _partials(self, row: str, number: int) -> Iterator[BatchArrays]:
        """Yield what an evaluator saw of a row, each image once."""
        changed = set(self._changed(row).tolist())
        for batch in (*self.batches, *self._replaced):
            yield from partials_of(batch, row, number, changed)


def partials_of(
    batch: BatchArrays, row: str, number: int, changed: Collection[int] = frozenset()
) -> Iterable[BatchArrays]:
    """Return what an evaluator saw of a batch: one partial of images that stay as they are, one of each other image.

    Args:
        batch: its arrays.
        row: name.
        number: of the evaluator.
        changed: ids of images that are left out.
    """
    prefix, own = f"evaluators.{row}.{number}.", f"evaluators.{row}@"
    partials: dict[str, BatchArrays] = {}
    for name, array in batch.items():
        if name.startswith(prefix):
            partials.setdefault("", {})[name.removeprefix(prefix)] = array
        elif name.startswith(own):
            image_id, of, field = name.removeprefix(own).split(".", 2)
            if of == str(number) and int(image_id) not in changed:
                partials.setdefault(image_id, {})[field] = array
    return partials.values()
