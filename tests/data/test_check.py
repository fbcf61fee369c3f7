"""`python -m part_robust.data.check` prints every violation; it reads images as training does, whatever their kind."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from part_robust.data.check import main
from part_robust.data.mapper import read_image
from part_robust.data.part_json import load_part_json
from tests.toy import SIZE, write_toy


@pytest.fixture
def toy(tmp_path) -> tuple[Path, Path]:
    return write_toy(tmp_path)


def change(path: Path, edit) -> None:
    data = json.loads(path.read_text())
    edit(data)
    path.write_text(json.dumps(data))


def run(capsys, *arguments) -> tuple[int, list[str]]:
    code = main([str(argument) for argument in arguments])
    return code, capsys.readouterr().out.splitlines()


# --- the json ---


def test_good_file_is_summed_up(toy, capsys):
    path, root = toy
    expected = [
        "12 images, 3 classes, 3 parts, 10 part annotations (0 with a box only)",
        "part_supervision: full 10, none 1, partial 1",
        "classes without parts: plain",
        f"{path}: good",
    ]
    assert run(capsys, path) == (0, expected)
    assert run(capsys, path, "--image-root", root) == (0, expected)


def test_summary_of_boxes_and_repeated_images(toy, capsys):
    path, _ = toy

    def edit(data):
        del data["annotations"][0]["segmentation"], data["annotations"][1]["segmentation"]
        data["classes"][1]["part_category_ids"] = [1]
        for index in (1, 2, 5):
            data["images"][index]["file_name"] = "1.png"
        # Another window of the same file shows other pixels.
        data["images"][5]["source"] = {"crop_xyxy": [0, 0, SIZE, SIZE]}

    change(path, edit)
    code, lines = run(capsys, path)
    assert code == 0
    assert lines == [
        "12 images, 3 classes, 3 parts, 10 part annotations (2 with a box only)",
        "part_supervision: full 10, none 1, partial 1",
        "images that show the same pixels as an earlier one: 2",
        f"{path}: good",
    ]


def test_every_violation_is_printed(toy, capsys):
    path, _ = toy

    def edit(data):
        for image in data["images"]:
            image["class_id"] = 9

    change(path, edit)
    code, lines = run(capsys, path)
    assert code == 1
    sentences = [f"images[{i}] (id {i + 1}): class_id 9 is not the id of any entry of `classes`" for i in range(12)]
    assert lines == [*sentences, f"{path}: 12 violations"]


def test_one_violation(toy, capsys):
    path, root = toy
    change(path, lambda data: data["images"][0].update(width=-1))
    expected = ["images[0] (id 1): width must be a positive integer, is -1", f"{path}: 1 violation"]
    # Images are not opened while the json does not say what they should be.
    assert run(capsys, path, "--image-root", root / "nowhere") == (1, expected)


def test_file_that_is_missing_or_no_json(tmp_path, capsys):
    with pytest.raises(SystemExit, match=f"^FileNotFoundError: annotation file {tmp_path}/no.json does not exist$"):
        run(capsys, tmp_path / "no.json")
    (tmp_path / "cut.json").write_text('{"images": [')
    with pytest.raises(SystemExit, match=f"^ValueError: {tmp_path}/cut.json is not valid json: [^\n]*$"):
        run(capsys, tmp_path / "cut.json")


def test_as_a_module(toy, monkeypatch, capsys):
    """python -m part_robust.data.check: exit code and output."""
    path, root = toy
    (root / "2.png").unlink()
    monkeypatch.setattr(sys, "argv", ["check", str(path), "--image-root", str(root)])
    monkeypatch.delitem(sys.modules, "part_robust.data.check")
    with pytest.raises(SystemExit) as stop:
        runpy.run_module("part_robust.data.check", run_name="__main__")
    assert stop.value.code == 1
    assert capsys.readouterr().out.splitlines() == [
        f"images[1] (id 2): {root / '2.png'} does not exist",
        f"{path}: 1 violation",
    ]


# --- the images ---


def noise(*shape: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8))


def test_missing_unreadable_and_wrong_sizes(toy, capsys):
    path, root = toy
    (root / "2.png").unlink()
    (root / "3.png").write_text("this is not an image")
    content = (root / "4.png").read_bytes()
    (root / "4.png").write_bytes(content[: len(content) // 2])
    noise(SIZE, SIZE + 1, 3).save(root / "5.png")
    noise(SIZE, SIZE).save(root / "6.png")  # grey is not a fault
    code, lines = run(capsys, path, "--image-root", root)
    assert code == 1
    assert lines[0] == f"images[1] (id 2): {root / '2.png'} does not exist"
    assert lines[1].startswith(f"images[2]: image {root / '3.png'} (image_id 3): cannot identify image file")
    assert lines[2].startswith(f"images[3]: image {root / '4.png'} (image_id 4): ")
    assert lines[3] == f"images[4]: image {root / '5.png'} (image_id 5): is 33 x 32, the json says 32 x 32"
    assert lines[4:] == [f"{path}: 4 violations"]


def test_a_cut_jpeg_is_found(toy, capsys):
    """Its header is whole: only decoding all of it shows the damage."""
    path, root = toy
    noise(SIZE, SIZE, 3).save(root / "1.jpg")
    content = (root / "1.jpg").read_bytes()
    (root / "1.jpg").write_bytes(content[: len(content) * 3 // 4])
    change(path, lambda data: data["images"][0].update(file_name="1.jpg"))
    code, lines = run(capsys, path, "--image-root", root)
    assert code == 1
    assert lines[0].startswith(f"images[0]: image {root / '1.jpg'} (image_id 1): ") and "truncated" in lines[0]


def test_sides_may_be_swapped_by_the_camera_s_rotation_only(toy, capsys):
    path, root = toy

    def edit(data):
        data["images"][1].update(width=20, height=40, file_name="turned.jpg")
        data["images"][4].update(width=20, height=40, file_name="lying.png")

    change(path, edit)
    exif = Image.Exif()
    exif[274] = 6
    noise(20, 40, 3).save(root / "turned.jpg", exif=exif)
    noise(20, 40, 3).save(root / "lying.png")
    expected = f"images[4]: image {root / 'lying.png'} (image_id 5): is 40 x 20, the json says 20 x 40"
    assert run(capsys, path, "--image-root", root) == (1, [expected, f"{path}: 1 violation"])


def test_windows_must_lie_in_their_file(toy, capsys):
    path, root = toy
    noise(50, 60, 3).save(root / "scene.png")

    def edit(data):
        for index, (left, top) in enumerate([(0, 0), (28, 18), (29, 18), (28, 19)]):
            window = [left, top, left + SIZE, top + SIZE]
            data["images"][index].update(file_name="scene.png", source={"crop_xyxy": window})

    change(path, edit)
    place = "image {} (image_id {}): is 60 x 50, source.crop_xyxy"
    expected = [
        f"images[2]: {place.format(root / 'scene.png', 3)} [29, 18, 61, 50] leaves it",
        f"images[3]: {place.format(root / 'scene.png', 4)} [28, 19, 60, 51] leaves it",
    ]
    assert run(capsys, path, "--image-root", root) == (1, [*expected, f"{path}: 2 violations"])


def test_image_root_that_is_no_folder(toy, capsys):
    path, root = toy
    expected = [f"--image-root {root / 'nowhere'}: is not a folder", f"{path}: 1 violation"]
    assert run(capsys, path, "--image-root", root / "nowhere") == (1, expected)


# --- reading one image ---


def read(path: Path, width: int, height: int, **more) -> np.ndarray:
    return read_image({"file_name": str(path), "width": width, "height": height, "image_id": 3, **more})


@pytest.mark.parametrize(
    ("mode", "value", "expected"),
    [
        ("L", 77, (77, 77, 77)),
        ("1", 1, (255, 255, 255)),
        ("LA", (77, 5), (77, 77, 77)),
        ("RGB", (1, 2, 3), (1, 2, 3)),
        ("RGBA", (1, 2, 3, 0), (1, 2, 3)),
    ],
)
def test_kinds_of_png(tmp_path, mode, value, expected):
    Image.new(mode, (5, 4), value).save(tmp_path / "x.png")
    pixels = read(tmp_path / "x.png", 5, 4)
    assert pixels.shape == (4, 5, 3) and pixels.dtype == np.uint8
    assert (pixels == expected).all()


def test_palette(tmp_path):
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8), mode="P")
    image.putpalette([9, 8, 7, 200, 100, 0, 1, 2, 3])
    image.save(tmp_path / "x.png")
    assert read(tmp_path / "x.png", 3, 1).tolist() == [[[9, 8, 7], [200, 100, 0], [1, 2, 3]]]


def test_cmyk(tmp_path):
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "x.jpg", quality=95)
    assert np.abs(read(tmp_path / "x.jpg", 8, 8).astype(int) - [255, 0, 0]).max() <= 3


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bits_are_scaled_not_clipped(tmp_path, suffix):
    grey = np.array([[0, 255, 256, 0x1234, 0xFFFF]], np.uint16)
    Image.fromarray(grey).save(tmp_path / f"x.{suffix}")
    assert read(tmp_path / f"x.{suffix}", 5, 1)[0].tolist() == [[v] * 3 for v in (0, 0, 1, 0x12, 0xFF)]


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_32_bits_have_no_known_range(tmp_path, dtype):
    Image.fromarray(np.ones((4, 5), dtype)).save(tmp_path / "x.tif")
    with pytest.raises(ValueError, match=r"x\.tif \(image_id 3\): has pixels of 32 bits .* save it with 8 bits"):
        read(tmp_path / "x.tif", 5, 4)


ROTATED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
    8: lambda a: np.rot90(a),
}


@pytest.mark.parametrize("orientation", ROTATED)
def test_camera_s_rotation_is_applied_only_where_the_json_s_size_has_it(tmp_path, orientation):
    stored = np.asarray(noise(4, 6, 3))
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(stored).save(tmp_path / "x.png", exif=exif)
    assert np.array_equal(read(tmp_path / "x.png", 6, 4), stored)
    if orientation > 4:  # those that swap the sides
        assert np.array_equal(read(tmp_path / "x.png", 4, 6), ROTATED[orientation](stored))
    else:
        with pytest.raises(ValueError, match="is 6 x 4, the json says 4 x 6"):
            read(tmp_path / "x.png", 4, 6)


@pytest.mark.parametrize("window", [[0, 0, 60, 50], [7, 3, 47, 33], [59, 49, 60, 50]])
@pytest.mark.parametrize("grey", [False, True])
def test_window_of_a_file(tmp_path, window, grey):
    scene = np.random.default_rng(1).integers(0, 65536 if grey else 256, (50, 60) if grey else (50, 60, 3))
    Image.fromarray(scene.astype(np.uint16 if grey else np.uint8)).save(tmp_path / "x.png")
    left, top, right, bottom = window
    pixels = read(tmp_path / "x.png", right - left, bottom - top, crop_xyxy=window)
    expected = scene[top:bottom, left:right]
    assert np.array_equal(pixels, np.stack([expected >> 8] * 3, -1) if grey else expected)


def test_a_window_that_was_cut_already_is_not_cut_again(tmp_path):
    """`source.crop_xyxy` of a copied crop tells where it comes from."""
    noise(20, 30, 3).save(tmp_path / "x.png")
    pixels = read(tmp_path / "x.png", 30, 20, crop_xyxy=[100, 100, 130, 120])
    assert np.array_equal(pixels, np.asarray(noise(20, 30, 3)))


def test_unreadable_files_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"image .*no\.png \(image_id 3\): .*No such file"):
        read(tmp_path / "no.png", 5, 4)
    noise(50, 60, 3).save(tmp_path / "x.png")
    content = (tmp_path / "x.png").read_bytes()
    for cut in (0, 10, 40, 500, len(content) - 40):
        (tmp_path / "x.png").write_bytes(content[:cut])
        with pytest.raises(ValueError, match=r"image .*x\.png \(image_id 3\): "):
            read(tmp_path / "x.png", 60, 50)


def test_a_picture_too_large_for_pillow_is_named(tmp_path, monkeypatch):
    noise(50, 60, 3).save(tmp_path / "x.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match=r"image .*x\.png \(image_id 3\): .*decompression bomb"):
        read(tmp_path / "x.png", 60, 50)


def test_other_spellings_of_a_file_name_are_named(tmp_path, capsys):
    json_file, root = write_toy(tmp_path)
    data = json.loads(json_file.read_text())
    name = data["images"][0]["file_name"]
    (root / name).rename(root / f"cafe\u0301 {name.upper()} ")
    data["images"][0]["file_name"] = f"caf\u00e9 {name}"
    json_file.write_text(json.dumps(data))
    assert main([str(json_file), "--image-root", str(root)]) == 1
    assert f"(there is 'cafe\u0301 {name.upper()} ', spelled otherwise" in capsys.readouterr().out
    with pytest.raises(FileNotFoundError, match="spelled otherwise: rename one of them"):
        load_part_json(json_file, root)
