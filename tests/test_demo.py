"""tools/demo.py on toys of every family: a line and a sheet for each image, mistakes answered by a sentence."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from part_robust.data import PartDatasetMapper
from part_robust.data.image_file import ImageFileMapper, find_image_files, read_image_file
from part_robust.engine.demo import Demo, build_demo_attack
from part_robust.visualize import overlay_boxes, part_colors
from tests.commands import call
from tests.toy import CLASSES, PARTS, run_cfg

ROOT = Path(__file__).resolve().parent.parent
specification = importlib.util.spec_from_file_location("demo_tool", ROOT / "tools" / "demo.py")
demo_tool = importlib.util.module_from_spec(specification)
specification.loader.exec_module(demo_tool)
main = demo_tool.main


FAMILIES = {
    "resnet": (True, False),
    "deeplab_segmenter": (False, True),
    "deeplab_two_headed": (True, True),
    "deeplab_downsampled": (True, True),
    "deeplab_bounding_box": (True, True),
    "deeplab_pixel": (True, True),
    "dino_detector": (False, True),
    "dino_sequential": (True, True),
    "dino_two_headed": (True, True),
    "mask_dino_segmenter": (False, True),
    "mask_dino_simple": (True, True),
}


@pytest.mark.parametrize("model", FAMILIES)
def test_every_family(model, a_run, photos, tmp_path, capsys):
    has_class, has_parts = FAMILIES[model]
    output = tmp_path / "sheets"
    arguments = [str(photos), "--run", str(a_run(model)), "--min-score", "0", "--output", str(output)]
    assert main([*arguments, "--attack", "pgd20"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == [str(photos / n) for n in ("clear.PNG", "tall.jpg", "wide.png")]
    for line, name in zip(lines, ("clear", "tall", "wide"), strict=True):
        before, after, path = line.split(" | ")
        for words in (before, after):
            shares = [int(share) for share in re.findall(r"(\d+) %", words)]
            assert (len(shares), abs(sum(shares) - 100) <= 2) == ((3, True) if has_class else (0, False))
            assert ("parts " in words) == has_parts
        assert ("PGD, linf 8/255 from" in after) == has_class
        assert path == str(output / f"{name}.png")
        with Image.open(path) as picture:
            assert picture.width > 4 * picture.height * 0.8, "five panels in a row"
            assert len(picture.convert("RGB").resize((64, 32)).getcolors(4096)) > 50, "a blank picture"


def test_without_attack_there_are_two_panels(a_run, photos, tmp_path, capsys):
    assert main([str(photos / "tall.jpg"), "--run", str(a_run("resnet")), "--output", str(tmp_path)]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.count(" | ") == 1
    with Image.open(tmp_path / "tall.png") as picture:
        assert 1.2 < picture.width / picture.height < 2.2


@pytest.mark.parametrize("transform", ["center_crop", "letterbox", "stretch"])
def test_the_model_sees_what_an_evaluation_shows_it(toy_data, transform, tmp_path):
    """The image of a record, whose file is given by its name alone; and the logits of both."""
    cfg = run_cfg(tmp_path, "INPUT.TEST_TRANSFORM", transform, "INPUT.TEST_RESIZE", 48)
    picture = np.random.default_rng(1).integers(0, 255, (50, 33, 3)).astype(np.uint8)
    Image.fromarray(picture).save(tmp_path / "a.png")
    record = {"file_name": str(tmp_path / "a.png"), "image_id": 1, "width": 33, "height": 50, "class_id": 0}
    record |= {"part_supervision": "none", "annotations": []}
    wanted = PartDatasetMapper(cfg, is_train=False, dataset_name="toy_val")(record)
    found = ImageFileMapper(cfg)(tmp_path / "a.png")
    assert torch.equal(found["image"], wanted["image"])
    assert found.get("content_size") == wanted.get("content_size")
    assert ("content_size" in found) == (transform == "letterbox")


def test_attacked_images_are_those_of_the_attack(a_run, photos, tmp_path, monkeypatch):
    """Deterministic, alone or among others; inside the ball; from the class that is named."""
    cfg = run_cfg(tmp_path, "MODEL.WEIGHTS", str(a_run("resnet") / "model_best.pth"), model="resnet")
    demo = Demo(cfg)
    attack = build_demo_attack(demo.cfg, "pgd20")
    seen = []
    inference = demo.model.inference
    monkeypatch.setattr(demo.model, "inference", lambda x, padding: seen.append(x.clone()) or inference(x, padding))
    paths = find_image_files([photos])
    list(demo.run(paths, tmp_path, attack))
    list(demo.run(paths[1:2], tmp_path, attack))
    (clean, attacked), (alone, alone_attacked) = seen[:2], seen[2:]
    assert torch.equal(alone[0], clean[1]) and torch.allclose(alone_attacked[0], attacked[1], atol=1e-3)
    assert 7.9 < float((attacked - clean).abs().max()) <= 8.0 + 1e-3
    losses = {}
    for name in CLASSES:
        seen.clear()
        list(demo.run(paths, tmp_path, attack, demo.label(name)))
        labels = torch.full((3,), CLASSES.index(name))
        losses[name] = [
            torch.nn.functional.cross_entropy(demo.model.class_logits(images), labels).item() for images in seen
        ]
    assert all(after > before for before, after in losses.values()), "the attack leads away from the class named"


@pytest.mark.parametrize("transform", ["center_crop", "letterbox"])
@pytest.mark.parametrize(
    ("model", "attack"), [("deeplab_two_headed", "segpgd"), ("dino_sequential", "apgd_part_loss"), *
                          [("mask_dino_simple", name) for name in ("apgd_part_loss", "cospgd")]]
)  # fmt: skip
def test_attacks_on_parts(model, attack, transform, a_run, photos, tmp_path, capsys):
    """They lead away from the parts that the model has found itself."""
    opts = ["ATTACK.SPECS.segpgd.STEPS", 2, "ATTACK.SPECS.cospgd.STEPS", 2, "INPUT.TEST_TRANSFORM", transform]
    folder = a_run(model, *opts)
    arguments = [str(photos), "--run", str(folder), "--min-score", "0.0", "--output", str(tmp_path)]
    assert main([*arguments, "--attack", attack]) == 0
    assert "zero gradient" not in capsys.readouterr().out


def test_turned_photographs_are_shown_upright(tmp_path):
    picture = np.zeros((4, 8, 3), dtype=np.uint8)
    picture[:, :4] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    Image.fromarray(picture).save(tmp_path / "a.png", exif=exif)
    assert read_image_file(tmp_path / "a.png").shape == (8, 4, 3)
    assert read_image_file(tmp_path / "a.png")[:4].min() == 255


def test_names_of_one_stem_do_not_overwrite(a_run, photos, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "tall.jpg").write_bytes((photos / "tall.jpg").read_bytes())
    output = tmp_path / "sheets"
    paths = [str(photos / "tall.jpg"), str(other / "tall.jpg")]
    assert main([*paths, "--run", str(a_run("resnet")), "--output", str(output)]) == 0
    assert {path.name for path in output.iterdir()} == {"tall.png", "tall_2.png"}


def test_without_the_training_set_names_are_numbers(a_run, photos, tmp_path, capsys):
    folder = a_run("deeplab_two_headed")
    text = (folder / "config.yaml").read_text().replace("toy_train", "gone_train").replace("toy_val", "gone_val")
    (folder / "config.yaml").write_text(text)
    assert main([str(photos / "tall.jpg"), "--run", str(folder), "--output", str(tmp_path)]) == 0
    assert "class " in capsys.readouterr().out


def test_a_broken_file_is_named_and_the_others_are_drawn(a_run, photos, tmp_path, capsys, caplog):
    (photos / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    output = tmp_path / "sheets"
    assert main([str(photos), "--run", str(a_run("resnet")), "--output", str(output)]) == 1
    assert len(capsys.readouterr().out.splitlines()) == len(list(output.iterdir())) == 3
    assert "broken.jpg cannot be read as an image" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nothing.jpg"], ["nothing.jpg", "no such file"]),
        (["EMPTY"], ["no image file in it", ".jpg"]),
        (["IMAGE", "--attack", "pgd7"], ["pgd7", "pgd20"]),
        (["IMAGE", "--attack", "segpgd"], ["no part segmenter"]),
        (["IMAGE", "--attack", "pgd20", "--class", "zebra"], ["zebra", *CLASSES]),
        (["IMAGE", "--weights", "nothing.pth"], ["nothing.pth"]),
        (["IMAGE", "--config-file", "nothing.yaml"], ["nothing.yaml"]),
        (["IMAGE", "--run", "EMPTY"], ["config.yaml", "--run"]),
        (["IMAGE", "--output", "IMAGE"], ["--output must be a folder", "tall.jpg"]),
        (["IMAGE", "--opts", "INPUT.SIZ", "3"], ["INPUT.SIZ"]),
        (["IMAGE", "--opts", "MODEL.PART_CLASSIFIER.HEAD", "TwoHeadedHead"], ["the checkpoint is of another model"]),
    ],
)
def test_mistakes_are_answered_by_a_sentence(arguments, words, a_run, photos, tmp_path):
    (tmp_path / "empty").mkdir()
    places = {"EMPTY": str(tmp_path / "empty"), "IMAGE": str(photos / "tall.jpg")}
    arguments = [places.get(argument, argument) for argument in arguments]
    run = [] if "--run" in arguments else ["--run", str(a_run("resnet"))]
    with pytest.raises(SystemExit) as refused:
        main([arguments[0], *run, "--output", str(tmp_path / "sheets"), *arguments[1:]])
    message = str(refused.value)
    assert len(message.splitlines()) == 1 and all(word in message for word in words), message
    assert not (tmp_path / "sheets").exists()


def test_as_a_command():
    done = call("demo", "a.jpg")
    assert done.returncode == 2 and "--run or --config-file" in done.stderr


def test_overlay_boxes():
    image = np.zeros((20, 30, 3), dtype=np.uint8)
    boxes = np.array([[2.0, 3.0, 12.0, 9.0], [-5.0, -5.0, 60.0, 60.0], [4.0, 4.0, 4.0, 4.0]])
    drawn = overlay_boxes(image, boxes, np.array([0, 1, 2]), len(PARTS))
    colors = part_colors(len(PARTS))
    assert (drawn[3, 2:12] == colors[0]).all() and (drawn[8, 2:12] == colors[0]).all()
    assert (drawn[5, 6] == 0).all() and (drawn[0] == colors[1]).all() and (drawn[4, 4] == colors[2]).all()
    assert (overlay_boxes(image, np.zeros((0, 4)), np.zeros(0, dtype=int), 3) == 0).all()
