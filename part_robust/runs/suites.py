"""Runs of the thesis's tables, and of their stand-ins on drawn images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from part_robust.config import default_cfg
from part_robust.runs.run import Run

DEEPLAB = {
    "deeplab_segmenter": "DeepLabv3+, parts only",
    "deeplab_downsampled": "Downsampled",
    "deeplab_bounding_box": "Bounding-Box",
    "deeplab_two_headed": "Two-Headed",
    "deeplab_pixel": "Pixel",
}
BASELINE = {"resnet50": "ResNet, no parts"}
DINO = {
    "dino_detector": "DINO, parts only",
    "dino_sequential": "DINO sequential",
    "dino_two_headed": "DINO two-headed",
}
# Of Tables 2.2 and 2.3 of the thesis; its two-headed rows are of six layers alone.
DINO_SIZES = {
    stem + size: title + row
    for stem, title in DINO.items()
    for size, row in {
        "": ", 6/6 layers, 900 queries",
        "_100q": ", 6/6 layers, 100 queries",
        "_1layer": ", 1/1 layer, 900 queries",
        "_1layer_100q": ", 1/1 layer, 100 queries",
    }.items()
    if not (stem == "dino_two_headed" and "1layer" in size)
}
MASK_DINO = {
    "mask_dino_segmenter": "Mask DINO, parts only",
    "mask_dino_simple_fixed_9layers": "Mask DINO Simple, fixed matrix, 9 layers",
    "mask_dino_simple_fixed_1layer": "Mask DINO Simple, fixed matrix, 1 layer",
    "mask_dino_simple_learned_9layers": "Mask DINO Simple, learned matrix, 9 layers",
    "mask_dino_simple_learned_1layer": "Mask DINO Simple, learned matrix, 1 layer",
}
# Of one model: does robustness come from the parts, or from any mask, or from the size of the network?
CONTROLS = {
    "deeplab_two_headed": "Two-Headed, parts",
    "deeplab_two_headed_object": "Two-Headed, object with its class",
    "deeplab_two_headed_foreground": "Two-Headed, foreground",
    "deeplab_two_headed_shuffled": "Two-Headed, parts shuffled in training",
    "deeplab_two_headed_share_01": "Two-Headed, parts of a tenth of the images",
    "deeplab_two_headed_c_seg_00": "Two-Headed, no part loss",
}
# On photographs, with ImageNet weights from the package index: models by kind, and what their parts are learned from.
PLAIN = {"plain": "EfficientNet-Lite0, no parts"}
PHOTOGRAPHS: dict[str, tuple[dict[str, str], dict[str, str]]] = {
    "deeplab": (
        PLAIN
        | {name: DEEPLAB[name] for name in ("deeplab_two_headed", "deeplab_pixel")}
        | {"deeplab_two_headed_c_seg_00": CONTROLS["deeplab_two_headed_c_seg_00"]},
        {"masks": ""},
    ),
    "dino": ({"dino_sequential": DINO["dino_sequential"]}, {"boxes": ""}),
    "mask_dino": ({"mask_dino_simple": "Mask DINO Simple"}, {"masks": ""}),
}
# Of Table 3.3; c_seg = 0.5 is the fixed matrix of 9 layers.
C_SEG = {f"mask_dino_simple_c_seg_0{tenth}": f"Mask DINO Simple, c_seg 0.{tenth}" for tenth in (0, 3, 7, 9)}
# Table -> folder of configs, models, and the suffixes of their configs by kind of part supervision.
TABLES: dict[str, tuple[str, dict[str, str], dict[str, str]]] = {
    "part_shapes_deeplab": ("part_shapes", BASELINE | DEEPLAB, {"masks": "", "boxes": "_boxes"}),
    "part_shapes_dino": ("part_shapes", DINO, {"boxes": ""}),
    "part_shapes_mask_dino": ("part_shapes", MASK_DINO, {"masks": ""}),
    "part_shapes_controls": ("part_shapes", BASELINE | CONTROLS, {"masks": ""}),
    "part_imagenet_deeplab": ("part_imagenet", BASELINE | DEEPLAB, {"masks": "", "boxes": "_boxes"}),
    "part_imagenet_dino": ("part_imagenet", DINO_SIZES, {"boxes": ""}),
    "paco_deeplab": ("paco", BASELINE | DEEPLAB, {"masks": ""}),
    "paco_mask_dino": ("paco", MASK_DINO | C_SEG, {"masks": ""}),
    **{f"{data}_{kind}": (data, *rows) for data in ("car_parts", "plants") for kind, rows in PHOTOGRAPHS.items()},
}
TRAININGS = {"clean": "", "adversarial": "_adv"}


@dataclass(frozen=True)
class Suite:
    """Several tables.

    Attributes:
        tables: names of TABLES, with the leaf configs that are taken of each, or () for all.
        overrides: by training, KEY VALUE pairs for all its runs.
        by_model: by leaf config and training, KEY VALUE pairs on top of these.
        variants: by leaf config, what is added to its name for more adversarial trainings from its clean one.
        variant_folder: of the variants' configs, inside the table's.
        folder: below output/, of runs that the overrides make other ones than the configs'; suites share what they have
            in common. "" leaves runs in the folders of the configs.
        of_thesis: its tables are those of the thesis, or their stand-ins.
    """

    tables: Mapping[str, Sequence[str]]
    overrides: Mapping[str, Sequence[str]] = field(default_factory=dict)
    by_model: Mapping[str, Mapping[str, Sequence[str]]] = field(default_factory=dict)
    variants: Mapping[str, Sequence[str]] = field(default_factory=dict)
    variant_folder: str = ""
    folder: str = ""
    of_thesis: bool = True


# Schedules for CPUs.
SHORT = {
    "clean": ("SOLVER.EPOCHS", "6.0", "SOLVER.EVAL_EPOCHS", "6.0", "ATTACK.EVAL", "['pgd20']"),
    "adversarial": ("SOLVER.EPOCHS", "4.0", "SOLVER.EVAL_EPOCHS", "4.0", "ATTACK.EVAL", "['pgd20']"),
}
SUITES = {
    "part_shapes": Suite({"part_shapes_deeplab": (), "part_shapes_dino": (), "part_shapes_mask_dino": ()}),
    # For CPUs, timed in docs/results.md: one model of each kind, half of the epochs, one evaluation in the end. The
    # slowest first, so that no process waits for it alone. DINO learns its boxes late: it keeps most of its epochs.
    "part_shapes_small": Suite(
        {
            "part_shapes_dino": ("dino_sequential",),
            "part_shapes_mask_dino": ("mask_dino_simple_learned_1layer",),
            "part_shapes_deeplab": ("deeplab_two_headed", "deeplab_downsampled_boxes", "resnet50"),
        },
        overrides=SHORT,
        by_model={"dino_sequential": {"clean": ("SOLVER.EPOCHS", "9.0", "SOLVER.EVAL_EPOCHS", "9.0")}},
        folder="part_shapes_small",
    ),
    # Adversarial trainings of a transformer from one clean model, at equally many passes: a step of N-FGSM costs two,
    # one of PGD-3 four. Beside them the DeepLab model that they ought to reach, from its own clean one.
    "part_shapes_recipes": Suite(
        {
            "part_shapes_dino": ("dino_sequential",),
            "part_shapes_mask_dino": ("mask_dino_simple_learned_1layer",),
            "part_shapes_deeplab": ("deeplab_two_headed",),
        },
        overrides=SHORT,
        by_model={
            "dino_sequential": {"clean": ("SOLVER.EPOCHS", "9.0", "SOLVER.EVAL_EPOCHS", "9.0")},
            **{
                leaf + "_ours": {"adversarial": ("SOLVER.EPOCHS", "8.0", "SOLVER.EVAL_EPOCHS", "8.0")}
                for leaf in ("dino_sequential", "mask_dino_simple_learned_1layer", "deeplab_two_headed")
            },
        },
        variants={
            "dino_sequential": ["_thesis", "_balanced", "_steady", "_ours"],
            "mask_dino_simple_learned_1layer": ["_thesis", "_ours"],
            "deeplab_two_headed": ["_ours"],
        },
        variant_folder="recipes",
        folder="part_shapes_small",
        of_thesis=False,
    ),
    # All with equally many passes: one schedule, one attack.
    "part_shapes_controls": Suite(
        {"part_shapes_controls": ()}, overrides=SHORT, folder="part_shapes_small", of_thesis=False
    ),
    # A recipe with augmentation for each objective, from one clean model, beside PGD without augmentation.
    "part_shapes_augmented": Suite(
        {"part_shapes_deeplab": ("deeplab_two_headed",)},
        overrides=SHORT,
        by_model={"deeplab_two_headed_nfgsm": {"adversarial": ("SOLVER.EPOCHS", "8.0", "SOLVER.EVAL_EPOCHS", "8.0")}},
        variants={"deeplab_two_headed": ["_pgd", "_trades", "_mart", "_nfgsm"]},
        variant_folder="augmented",
        folder="part_shapes_small",
        of_thesis=False,
    ),
    "photographs": Suite(
        {f"{data}_{kind}": () for data in ("car_parts", "plants") for kind in PHOTOGRAPHS}, of_thesis=False
    ),
    # Tables 2.1 to 2.3: DeepLab learns from boxes there, and its class head is Downsampled.
    "thesis_2": Suite(
        {
            "part_imagenet_deeplab": ("deeplab_segmenter_boxes", "deeplab_downsampled_boxes"),
            "part_imagenet_dino": (),
        }
    ),
    # Tables 3.1 to 3.4.
    "thesis_3": Suite(
        {
            "paco_deeplab": ("resnet50", "deeplab_downsampled", "deeplab_two_headed"),
            "paco_mask_dino": ("mask_dino_simple_learned_1layer", "mask_dino_simple_fixed_9layers", *C_SEG),
        },
        variants={"deeplab_two_headed": ["_5steps"], "mask_dino_simple_fixed_9layers": ["_5steps"]},
    ),
}


def table_runs(
    table: str, only: Sequence[str] = (), opts: Sequence[str] = (), folder: str = "", seeds: Sequence[int] = ()
) -> list[Run]:
    """Return every run of a table, clean trainings before the runs that continue them.

    Args:
        table: name in TABLES.
        only: models of the table; all if empty.
        opts: KEY VALUE pairs for every run.
        folder: holds the runs' folders; "" leaves them where the configs say.
        seeds: values of SEED, each of which all runs are made with, one seed after the other; () for the config's.
            Runs with the default of SEED have their folder as without seeds, others in a folder `seed_<SEED>` there.

    Raises:
        ValueError: a name in `only` is none of the table's models.
    """
    _, models, _ = TABLES[table]
    _check(table, only, models)
    return [
        _run(table, leaf, cells, training, opts, folder, seed)
        for seed in seeds or (None,)
        for model, leaf, cells in _leaves(table)
        for training in TRAININGS
        if not only or model in only
    ]


def suite_runs(
    name: str, only: Sequence[str] = (), opts: Sequence[str] = (), folder: str = "", seeds: Sequence[int] = ()
) -> list[Run]:
    """Return every run of a suite, like `table_runs`; raises the same ValueError.

    `only` names leaf configs; what their runs begin from is among the runs, too.
    """
    suite = SUITES[name]
    if suite.folder and not folder:
        folder = f"./output/{suite.folder}"
    # Runs of several data sets have the same names.
    data_sets = {TABLES[table][0] for table in suite.tables}

    def overrides(leaf: str, training: str) -> list[str]:
        # The user has the last word.
        return [*suite.overrides.get(training, ()), *suite.by_model.get(leaf, {}).get(training, ()), *opts]

    found = []
    for seed in seeds or (None,):
        for table, wanted in suite.tables.items():
            leaves = {leaf: cells for _, leaf, cells in _leaves(table)}
            place = str(PurePosixPath(folder, TABLES[table][0])) if folder and len(data_sets) > 1 else folder
            for leaf in wanted or leaves:
                for training in TRAININGS:
                    found.append(_run(table, leaf, leaves[leaf], training, overrides(leaf, training), place, seed))
                for variant in suite.variants.get(leaf, ()):
                    opts_here = overrides(leaf + variant, "adversarial")
                    config = (variant, suite.variant_folder)
                    found.append(_run(table, leaf, leaves[leaf], "adversarial", opts_here, place, seed, *config))
    _check(name, only, {run.leaf for run in found})
    if not only:
        return found
    # A variant goes with what it is one of, and alone it still begins from the clean training.
    chosen = {leaf + variant for leaf in only for variant in ("", *suite.variants.get(leaf, ()))}
    needed = {run.after for run in found if run.leaf in chosen}
    return [run for run in found if run.leaf in chosen or run.output in needed]


def _leaves(table: str) -> list[tuple[str, str, tuple[str, str]]]:
    """Return (model, leaf config, (model, supervision) as in the table) of every row."""
    _, models, supervisions = TABLES[table]
    return [
        (model, model + suffix, (title, supervision))
        for model, title in models.items()
        # The baseline sees no parts, so its supervision makes no difference.
        for supervision, suffix in (supervisions if model not in BASELINE | PLAIN else {"none": ""}).items()
    ]


def _run(
    table: str,
    leaf: str,
    cells: tuple[str, str],
    training: str,
    opts: Sequence[str],
    folder: str,
    seed: int | None,
    variant: str = "",
    subfolder: str = "",
) -> Run:
    name = title = leaf + variant + TRAININGS[training]
    opts = list(opts)
    if seed is not None:
        title = f"{name}, seed {seed}"
        opts = ["SEED", str(seed), *opts]
        if seed != default_cfg().SEED:
            folder = str(PurePosixPath(folder or f"./output/{TABLES[table][0]}", f"seed_{seed}"))
    if folder:
        # As in the configs: an adversarial training begins from the clean one's best weights.
        if training == "adversarial":
            opts = ["MODEL.WEIGHTS", str(PurePosixPath(folder, leaf, "model_best.pth")), *opts]
        opts = ["OUTPUT_DIR", str(PurePosixPath(folder, name)), *opts]
    cells = (cells[0] + variant.replace("_", ", "), cells[1])
    config_file = PurePosixPath("configs", TABLES[table][0], subfolder, f"{name}.yaml")
    return Run(title, str(config_file), opts, table, leaf + variant, (*cells, training), seed)


def _check(name: str, only: Sequence[str], known: Sequence[str] | Mapping[str, str] | set[str]) -> None:
    if unknown := set(only) - set(known):
        raise ValueError(f"{name} has no model {sorted(unknown)}, only {', '.join(sorted(known))}")
