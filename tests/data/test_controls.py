"""Part labels of control experiments: one geometry, other labels, the same in every run."""

from __future__ import annotations

import itertools

import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model
from hypothesis import given
from hypothesis import strategies as st

from part_robust.data import PartDatasetMapper, get_taxonomy
from part_robust.data.controls import CHANGES, derived_dataset, with_label_share
from part_robust.engine import PartTrainer
from part_robust.run_config import complete
from tests.toy import CLASSES, STEADY, tiny_cfg


def label_maps(cfg, name: str) -> dict[int, torch.Tensor]:
    mapper = PartDatasetMapper(cfg, is_train=False, dataset_name=name)
    return {record["image_id"]: mapper(record)["sem_seg"] for record in DatasetCatalog.get(name)}


@pytest.mark.parametrize("kind", ["object", "foreground", "shuffled"])
def test_labels_change_and_pixels_stay(toy_data, kind):
    plain = complete(tiny_cfg())
    cfg = complete(tiny_cfg("deeplab_two_headed", "INPUT.PART_LABELS", kind))
    assert cfg.DATASETS.TRAIN == (f"toy_train@{kind}",)
    assert cfg.DATASETS.VAL == (("toy_val",) if kind == "shuffled" else (f"toy_val@{kind}",))
    assert complete(cfg) == cfg, "as a run's own config.yaml has it"
    parts = plain.MODEL.PART_CLASSIFIER.NUM_PARTS
    number = {"object": len(CLASSES), "foreground": 1, "shuffled": parts}[kind]
    assert cfg.MODEL.PART_CLASSIFIER.NUM_PARTS == number
    classes = {record["image_id"]: record["class_id"] for record in DatasetCatalog.get("toy_train")}
    before, after = label_maps(plain, "toy_train"), label_maps(cfg, cfg.DATASETS.TRAIN[0])
    changed = 0
    for image_id, labels in before.items():
        found, is_part = after[image_id], labels < parts
        torch.testing.assert_close(found[~is_part], torch.where(labels == parts, number, labels)[~is_part])
        if kind == "shuffled":
            own = get_taxonomy("toy_train").class_parts[classes[image_id]]
            pairs = {(int(a), int(b)) for a, b in zip(labels[is_part], found[is_part], strict=True)}
            assert len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})
            assert {b for _, b in pairs} <= set(own)
            changed += any(a != b for a, b in pairs)
        else:
            assert (found[is_part] == (classes[image_id] if kind == "object" else 0)).all()
    assert kind != "shuffled" or 0 < changed < len(before)


def test_neighbours_of_an_object_count_nowhere(toy_data):
    record = next(record for record in DatasetCatalog.get("toy_train") if len(record["annotations"]) == 2)
    neighbour = {**record["annotations"][0], "is_target": 0}
    changed = {**record, "annotations": [neighbour, record["annotations"][1]]}
    cfg, name = complete(tiny_cfg()), derived_dataset("toy_train", "object")
    mapper = PartDatasetMapper(cfg, is_train=False, dataset_name=name)
    found = mapper(CHANGES["object"](changed, get_taxonomy("toy_train")))
    original = PartDatasetMapper(cfg, is_train=False, dataset_name="toy_train")(record)["sem_seg"]
    assert (found["sem_seg"][original == neighbour["category_id"]] == 255).all()
    assert len(found["instances"]) == 1


def test_a_fixed_matrix_needs_labels_that_tell_classes_apart(toy_data):
    opts = ["INPUT.PART_LABELS", "foreground"]
    with pytest.raises(ValueError, match=r"MODEL\.PART_TO_CLASS\.LEARNED must be True.*got False"):
        build_model(complete(tiny_cfg("deeplab_pixel", *opts)))
    build_model(complete(tiny_cfg("deeplab_pixel", *opts, "MODEL.PART_TO_CLASS.LEARNED", True)))


def test_a_model_trains_on_the_foreground_of_few_images(toy_data, tmp_path):
    opts = ["INPUT.PART_LABELS", "foreground", "DATASETS.PART_LABEL_SHARE", 0.5, "TEST.EVAL_PERIOD", 2]
    folder = ["OUTPUT_DIR", str(tmp_path), "SOLVER.STEPS", (), "SOLVER.MAX_ITER", 2]
    trainer = PartTrainer(complete(tiny_cfg("deeplab_two_headed", *folder, *opts)))
    labelled = {
        item["image_id"]: item["part_supervision"] != "none"
        for batch in itertools.islice(trainer.data_loader, 12)
        for item in batch
    }
    records = with_label_share(DatasetCatalog.get("toy_train@foreground"), 0.5)
    assert labelled == {record["image_id"]: record["part_supervision"] != "none" for record in records}
    trainer.train()
    assert trainer._last_eval_results["part_seg"]["mIoU"] >= 0


def test_a_model_of_the_same_size_learns_no_parts(toy_data):
    """SEG_LOSS_WEIGHT 0 leaves every weight of the decoder without gradient, and the others with that of the class."""

    def gradients(weight: float) -> tuple[dict[str, torch.Tensor], float]:
        cfg = complete(tiny_cfg("deeplab_two_headed", *STEADY, "MODEL.PART_CLASSIFIER.SEG_LOSS_WEIGHT", weight))
        torch.manual_seed(0)
        model = build_model(cfg).train()
        mapper = PartDatasetMapper(cfg, is_train=False, dataset_name="toy_train")
        losses = model([mapper(record) for record in DatasetCatalog.get("toy_train")[:4]])
        sum(losses.values()).backward()
        return {name: parameter.grad for name, parameter in model.named_parameters()}, float(losses["loss_cls"])

    (without, loss), (learned, half) = gradients(0.0), gradients(0.5)
    assert {name: grad.shape for name, grad in without.items()} == {name: grad.shape for name, grad in learned.items()}
    decoder = [name for name in without if name.startswith("segmenter.")]
    assert decoder and all(not without[name].any() for name in decoder) and any(learned[name].any() for name in decoder)
    assert all(grad.any() for name, grad in without.items() if name not in decoder)
    assert loss == pytest.approx(2 * half), "the class loss has all the weight"
    head = [name for name in without if name.startswith("head.")]
    assert head and all(torch.allclose(without[name], 2 * learned[name], rtol=1e-4, atol=1e-7) for name in head)


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=30), st.floats(0, 1), st.floats(0, 1))
def test_shares_are_nested_and_the_same_for_each_class(images, first, second):
    records = [
        {
            "image_id": 7 * i,
            "file_name": f"{i}.png",
            "class_id": label,
            "part_supervision": "full" if labelled else "none",
            "annotations": [{}] * labelled,
        }
        for i, (label, labelled) in enumerate(images)
    ]
    small, large = sorted((first, second))

    def kept(records: list[dict], share: float) -> set[int]:
        found = with_label_share(records, share)
        assert [record["image_id"] for record in found] == [record["image_id"] for record in records]
        assert all((record["part_supervision"] == "none") == (not record["annotations"]) for record in found)
        return {record["image_id"] for record in found if record["annotations"]}

    assert kept(records, small) <= kept(records, large)
    assert kept(records, large) == kept(records[::-1], large)
    for label in range(4):
        members = {record["image_id"] for record in records if record["class_id"] == label and record["annotations"]}
        assert len(members & kept(records, large)) == round(large * len(members))
