"""Parts of PACO that cannot be read: their pixels are unknown in the crops that show them, not background."""

from __future__ import annotations

import pytest
from PIL import Image

from part_robust.data.preparation.paco_crops import CropRules, ImageUnit, Target, crop_unit
from part_robust.data.preparation.paco_source import PacoAnnotation, PacoImage, read_paco_file
from tests.data.paco_fixture import PacoFileBuilder


@pytest.mark.parametrize(
    ("lost", "expected"),
    [
        ([], "full"),
        ([[36.0, 0.0, 9.0, 9.0]], "full"),
        ([[34.0, 0.0, 9.0, 9.0]], "partial"),
        ([[0.0, 0.0, float("nan"), 1.0]], "partial"),  # may lie anywhere
    ],
)
def test_lost_parts_make_the_crops_partial_that_show_them(tmp_path, lost, expected):
    Image.new("RGB", (60, 40)).save(tmp_path / "1.png")
    image = PacoImage(1, "1.png", 60, 40, [], [])
    box, mask = [10.0, 5.0, 20.0, 20.0], [[10.0, 5.0, 30.0, 5.0, 30.0, 25.0, 10.0, 25.0]]
    target = Target(PacoAnnotation(1, 1, 7, 1, box, mask), [PacoAnnotation(2, 1, 8, 1, box, mask)], kept=True)
    unit = ImageUnit("lvis/train/1", "g", "train", "lvis", image, str(tmp_path / "1.png"), "1.png", [target], lost)
    result = crop_unit(unit, CropRules(), {7: 1}, {8: 1}, tmp_path)
    assert result["samples"][0]["image"]["source"]["crop_xyxy"] == [5, 0, 35, 30]
    assert result["samples"][0]["image"]["part_supervision"] == expected
    unknown = 0 if expected == "full" else 30 * 30 - 20 * 20
    assert result["counts"] == {"pixels": 900, "pixels_ignored": unknown, "pixels_of_parts": 400}


def test_parts_that_fit_nowhere_are_lost_to_their_image(tmp_path):
    builder = PacoFileBuilder()
    image = builder.image(1, "1.png")
    cup = builder.regular(image, "cup", [4, 4, 20, 20])
    builder.part({**cup, "id": 999}, "handle", [30, 4, 5, 5])  # of no object
    builder.part(cup, "rim", [40, 4, 5, 5])["category_id"] = 10**6
    builder.write(tmp_path / "file.json")
    file = read_paco_file(tmp_path / "file.json", "lvis", "train", masks=True)
    assert sorted(file.lost[1]) == [[30.0, 4.0, 5.0, 5.0], [40.0, 4.0, 5.0, 5.0]]
