"""Results of a batch as fields, and the names under which journals hold them.

A journal holds a flat dict of arrays for each batch; `NamedArrays` are the only place where its names are made. `<row>`
is "clean", a tier or an attack on the parts. Names of before must stay, or older journals cannot be resumed.

Letters: N images, S steps of a run, M pairs of an image and a label that occurs in it, R images that get a picture,
P parts, H W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from types import MappingProxyType
from typing import ClassVar, TypeVar

import numpy as np

from part_robust.evaluation.journal import BatchArrays

Kind = TypeVar("Kind", bound="NamedArrays")


@dataclass
class NamedArrays:
    """Arrays that belong together, one a field; those with the default None may be absent.

    Attributes:
        template: name of an array, of `{field}` and of the `{name}` of what the arrays are about.
        names_of_before: field -> its word in the names of arrays, where journals have another one.
    """

    template: ClassVar[str]
    names_of_before: ClassVar[Mapping[str, str]] = MappingProxyType({})

    @classmethod
    def names(cls, name: str = "") -> dict[str, str]:
        """Field -> name of its array."""
        return {
            field.name: cls.template.format(field=cls.names_of_before.get(field.name, field.name), name=name)
            for field in fields(cls)
        }

    def write(self, name: str = "") -> BatchArrays:
        """Return the arrays that are there, by name."""
        names = self.names(name)
        return {names[field]: value for field, value in vars(self).items() if value is not None}

    @classmethod
    def read(cls: type[Kind], arrays: Mapping[str, np.ndarray], name: str = "") -> Kind:
        """Return the fields of `arrays`.

        Raises:
            KeyError: an array is absent that must be there.
        """
        needed = {field.name for field in fields(cls) if field.default is MISSING}
        names = cls.names(name)
        return cls(**{field: arrays[key] for field, key in names.items() if field in needed or key in arrays})

    @classmethod
    def find(cls: type[Kind], arrays: Mapping[str, np.ndarray], name: str = "") -> Kind | None:
        """Same as `read`, None where the first field is absent."""
        return cls.read(arrays, name) if next(iter(cls.names(name).values())) in arrays else None


@dataclass
class ImageArrays(NamedArrays):
    """The images.

    Attributes:
        image_id: int64 (N,).
        label: int64 (N,), classes.
        object_share: float (N,), share of the image's area that its parts cover, 0..1; NaN where no part is labelled.
        pixels: int64 (N,), labelled pixels, of models that predict parts.
    """

    template = "images.{field}"

    image_id: np.ndarray
    label: np.ndarray
    object_share: np.ndarray
    pixels: np.ndarray | None = None

    @classmethod
    def ids(cls, arrays: Mapping[str, np.ndarray]) -> list[int]:
        """Return the ids of a batch's images."""
        return arrays[cls.names()["image_id"]].tolist()


@dataclass
class ClassArrays(NamedArrays):
    """Class predictions on the images of a row.

    Attributes:
        prediction: int64 (N,).
        margin: float (N,), largest wrong logit minus the right one.
    """

    template = "images.{field}.{name}"

    prediction: np.ndarray
    margin: np.ndarray


@dataclass
class PixelArrays(NamedArrays):
    """Part predictions on the images of a row.

    Attributes:
        pixels_right: int64 (N,).
    """

    template = "images.{field}.{name}"

    pixels_right: np.ndarray


@dataclass
class LabelArrays(NamedArrays):
    """Pixels of the images of a row by label, where the label occurs: PACO has hundreds of parts, an image a few.

    Attributes:
        image_id: int64 (M,).
        label: int64 (M,).
        hits: int64 (M,), right pixels.
        truth: int64 (M,), true pixels.
        predicted: int64 (M,), predicted pixels.
    """

    template = "counts.{name}.{field}"

    image_id: np.ndarray
    label: np.ndarray
    hits: np.ndarray
    truth: np.ndarray
    predicted: np.ndarray


@dataclass
class TierArrays(NamedArrays):
    """Results of a tier.

    Attributes:
        broken_by: int64 (N,), index of the attack that broke the image, -1 where none did.
        prediction_8bit: int64 (N,), classes on the adversarial images as saved, in whole numbers.
    """

    template = "images.{field}.{name}"

    broken_by: np.ndarray
    prediction_8bit: np.ndarray | None = None


@dataclass
class AttackArrays(NamedArrays):
    """Results of an attack.

    Attributes:
        fooled: bool (N,), it has won.
        done: bool (N,), images that it ran on.
        distance: float (N,), norm of the smallest perturbation found; NaN where it did not run.
    """

    template = "images.{field}.{name}"

    fooled: np.ndarray | None = None
    done: np.ndarray | None = None
    distance: np.ndarray | None = None


@dataclass
class RegionArrays(NamedArrays):
    """Results of a tier of local attacks, of M pairs of an image and a region of it (evaluation/regions.py).

    Attributes:
        image_id: int64 (M,).
        region: int64 (M,).
        broken_by: int64 (M,), index of the attack that broke the image inside the region, -1 where none did.
        attacked: bool (M,), False for images that are wrong without any attack.
        zero_gradient: bool (M,), attacked, and every gradient inside the region was zero.
        right_greyed: int8 (M,), whether the class is right where the region is grey, -1 of patches.
        top: int64 (M,), first row of the patch, -1 of other regions.
        left: int64 (M,), first column of the patch, -1 of other regions.
    """

    template = "regions.{name}.{field}"

    image_id: np.ndarray
    region: np.ndarray
    broken_by: np.ndarray
    attacked: np.ndarray
    zero_gradient: np.ndarray
    right_greyed: np.ndarray
    top: np.ndarray
    left: np.ndarray


@dataclass
class RegionPictureArrays(NamedArrays):
    """Pictures of R pairs of an image and a region, of few images.

    Attributes:
        image_id: int64 (R,).
        region: int64 (R,).
        label: int64 (R,), classes.
        before: int64 (R,), predicted class without attack.
        after: int64 (R,), predicted class under attack.
        clean: uint8 (R, 3, H, W), RGB.
        attacked: uint8 (R, 3, H, W), RGB, rounded.
        mask: bool (R, H, W), what the attacker may change.
    """

    template = "region_pictures.{name}.{field}"

    image_id: np.ndarray
    region: np.ndarray
    label: np.ndarray
    before: np.ndarray
    after: np.ndarray
    clean: np.ndarray
    attacked: np.ndarray
    mask: np.ndarray


@dataclass
class CurveArrays(NamedArrays):
    """Results at one radius of the eps curve, whose name is the radius.

    Attributes:
        curve: bool (N,), still right.
    """

    template = "images.{field}.{name}"

    curve: np.ndarray


@dataclass
class CostArrays(NamedArrays):
    """Cost of an attack, or, as "evaluation", of everything else; scalars, which add up over batches.

    Attributes:
        images: images attacked.
        forwards: images sent through the model.
        backwards: images whose gradient was taken.
        zero_gradient: images whose gradient was zero at every step.
        seconds: wall time.
        history: float (S,), sum over the images of the loss at each step of the first run.
    """

    template = "costs.{name}.{field}"
    names_of_before = MappingProxyType({"zero_gradient": "blind"})

    images: np.ndarray | None = None
    forwards: np.ndarray | None = None
    backwards: np.ndarray | None = None
    zero_gradient: np.ndarray | None = None
    seconds: np.ndarray | None = None
    history: np.ndarray | None = None


@dataclass
class TotalCost:
    """Cost of an attack in all batches; fields are those of `CostArrays`, 0 where it never ran.

    Attributes:
        history: None where no loss was recorded.
    """

    images: int
    forwards: int
    backwards: int
    zero_gradient: int
    seconds: float
    history: np.ndarray | None


@dataclass
class PictureArrays(NamedArrays):
    """Images for people, few of them, before and after the attacks of the first tier.

    Attributes:
        image_id: int64 (R,).
        label: int64 (R,), classes.
        clean: uint8 (R, 3, H, W), RGB.
        attacked: float32 (R, 3, H, W), RGB, 0..255.
        true_parts: int16 (R, H, W), background P, -1 where nothing is known.
        parts_before: int16 (R, H, W), as predicted, -1 of models that predict none.
        parts_after: int16 (R, H, W), under attack.
        harm: float (R,), how far the attack got: the class margin, or the share of pixels it turned.
        broken: bool (R,), the class is wrong, or most pixels turned.
        top3_labels_before: int64 (R, 3), the most probable classes, -1 where there are fewer.
        top3_probabilities_before: float (R, 3).
        top3_labels_after: int (R, 3), under attack.
        top3_probabilities_after: float (R, 3), under attack.
    """

    template = "pictures.{field}"

    image_id: np.ndarray
    label: np.ndarray
    clean: np.ndarray
    attacked: np.ndarray
    true_parts: np.ndarray
    parts_before: np.ndarray
    parts_after: np.ndarray
    harm: np.ndarray
    broken: np.ndarray
    top3_labels_before: np.ndarray | None = None
    top3_probabilities_before: np.ndarray | None = None
    top3_labels_after: np.ndarray | None = None
    top3_probabilities_after: np.ndarray | None = None


@dataclass
class VoteArrays(NamedArrays):
    """Predictions on noisy images, counted by class, in the journal of randomised smoothing.

    Attributes:
        image_id: int64 (N,).
        label: int64 (N,).
        selection: int64 (N, C), of the draws that choose the class.
        votes: int64 (N, C), of the others.
        seconds: float (N,), wall time.
    """

    template = "images.{field}"

    image_id: np.ndarray
    label: np.ndarray
    selection: np.ndarray
    votes: np.ndarray
    seconds: np.ndarray
