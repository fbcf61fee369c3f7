"""Names of arrays in a journal: those of earlier versions, spelled out here, or their journals could not be read."""

from __future__ import annotations

import numpy as np
import pytest

from part_robust.evaluation.batch_arrays import Merged
from part_robust.evaluation.journal import Journal
from part_robust.evaluation.named_arrays import (
    AttackArrays,
    ClassArrays,
    CostArrays,
    CurveArrays,
    ImageArrays,
    LabelArrays,
    NamedArrays,
    PictureArrays,
    PixelArrays,
    RegionArrays,
    RegionPictureArrays,
    TierArrays,
    VoteArrays,
)

NAMES = {
    ImageArrays: "images.image_id images.label images.object_share images.pixels",
    ClassArrays: "images.prediction.a.5 images.margin.a.5",
    PixelArrays: "images.pixels_right.a.5",
    TierArrays: "images.broken_by.a.5 images.prediction_8bit.a.5",
    AttackArrays: "images.fooled.a.5 images.done.a.5 images.distance.a.5",
    CurveArrays: "images.curve.a.5",
    CostArrays: "costs.a.5.images costs.a.5.forwards costs.a.5.backwards costs.a.5.blind costs.a.5.seconds "
    "costs.a.5.history",
    LabelArrays: "counts.a.5.image_id counts.a.5.label counts.a.5.hits counts.a.5.truth counts.a.5.predicted",
    RegionArrays: (
        "regions.a.5.image_id regions.a.5.region regions.a.5.broken_by regions.a.5.attacked regions.a.5.zero_gradient"
        " regions.a.5.right_greyed regions.a.5.top regions.a.5.left"
    ),
    RegionPictureArrays: (
        "region_pictures.a.5.image_id region_pictures.a.5.region region_pictures.a.5.label region_pictures.a.5.before"
        " region_pictures.a.5.after region_pictures.a.5.clean region_pictures.a.5.attacked region_pictures.a.5.mask"
    ),
    PictureArrays: "pictures.image_id pictures.label pictures.clean pictures.attacked pictures.true_parts "
    "pictures.parts_before pictures.parts_after pictures.harm pictures.broken pictures.top3_labels_before "
    "pictures.top3_probabilities_before pictures.top3_labels_after pictures.top3_probabilities_after",
    VoteArrays: "images.image_id images.label images.selection images.votes images.seconds",
}


@pytest.mark.parametrize("kind", NAMES, ids=lambda kind: kind.__name__)
def test_names_are_those_of_earlier_versions(kind):
    """Attacks and tiers may have dots in their names."""
    assert list(kind.names("a.5").values()) == NAMES[kind].split()
    values = {field: np.arange(number) for number, field in enumerate(kind.names())}
    written = kind(**values).write("a.5")
    assert list(written) == NAMES[kind].split()
    assert all(np.array_equal(getattr(kind.read(written, "a.5"), field), value) for field, value in values.items())
    assert set(NAMES) == set(NamedArrays.__subclasses__())


def old_batch(ids: list[int], attacked: bool) -> dict[str, np.ndarray]:
    """A batch as version 0.1 wrote it: an attack that had nothing to do there has no arrays."""
    batch = {
        "images.image_id": np.array(ids),
        "images.label": np.array(ids) % 3,
        "images.object_share": np.full(len(ids), 0.5),
        "images.prediction.clean": np.array(ids) % 3,
        "images.margin.clean": np.full(len(ids), -1.0),
        "images.broken_by.tier": np.full(len(ids), -1),
        "images.curve.0.5": np.ones(len(ids), dtype=bool),
        "counts.clean.image_id": np.array(ids),
        **{f"counts.clean.{name}": np.array(ids) for name in ("label", "hits", "truth", "predicted")},
        "costs.evaluation.forwards": np.array(7),
        "costs.evaluation.seconds": np.array(0.5),
    }
    if attacked:
        batch |= {"images.done.pgd": np.ones(len(ids), dtype=bool), "images.distance.pgd": np.full(len(ids), 2.0)}
        batch |= {f"costs.pgd.{name}": np.array(4) for name in ("images", "forwards", "backwards", "blind")}
        batch |= {"costs.pgd.seconds": np.array(1.5), "costs.pgd.history": np.array([1.0, 2.0])}
    return batch


def test_a_journal_of_an_earlier_version_is_read(tmp_path):
    journal = Journal.open(tmp_path, {"of": "a test"}, resume=False)
    for ids, attacked in (([5, 3], True), ([4], False), ([1, 2], True)):
        journal.write(old_batch(ids, attacked), ids)
    merged = Merged(Journal.open(tmp_path, {"of": "a test"}, resume=True).batches())
    assert merged.image.image_id.tolist() == [1, 2, 3, 4, 5] and merged.image.pixels is None
    assert merged.read(ClassArrays, "clean").prediction.tolist() == [1, 2, 0, 1, 2]
    assert merged.find(ClassArrays, "tier") is None and merged.pictures() is None
    with pytest.raises(KeyError, match=r"images\.prediction\.tier"):
        merged.read(ClassArrays, "tier")
    tier, attack = merged.read(TierArrays, "tier"), merged.read(AttackArrays, "pgd")
    assert tier.broken_by.tolist() == [-1] * 5 and tier.prediction_8bit is None
    assert attack.fooled is None and attack.done.tolist() == [True, True, True, False, True]
    assert np.array_equal(attack.distance, [2.0, 2.0, 2.0, np.nan, 2.0], equal_nan=True)
    assert merged.read(CurveArrays, "0.5").curve.all()
    assert sorted(merged.labels("clean").hits.tolist()) == [1, 2, 3, 4, 5]
    cost, rest = merged.cost("pgd"), merged.cost("evaluation")
    assert (cost.images, cost.forwards, cost.backwards, cost.zero_gradient, cost.seconds) == (8, 8, 8, 8, 3.0)
    assert cost.history.tolist() == [2.0, 4.0]
    assert (rest.images, rest.forwards, rest.seconds, rest.history) == (0, 21, 1.5, None)
