"""An honest little classifier, and the ways in which a model can look robust without being so."""

from __future__ import annotations

from contextlib import contextmanager

import torch
from torch import nn

SIZE, CLASSES = 12, 5
MIDDLE = slice(3, 9)


class Honest(nn.Module):
    """Smooth, small and wide awake: labels are what it says itself, so it is right about every clean image."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.first = nn.Conv2d(3, 12, 3, padding=1)
        self.second = nn.Conv2d(12, 16, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.last = nn.Linear(16, CLASSES)
        for parameter in self.parameters():
            if parameter.ndim > 1:
                scale = parameter[0].numel() ** -0.5
                parameter.data = 1.5 * scale * torch.randn(parameter.shape, generator=generator)
            else:
                parameter.data = torch.ones_like(parameter) if parameter is self.norm.weight else 0 * parameter
        with torch.no_grad():
            self.eval()
            features = self.features(make_images(256, seed=9))
            centred = features - features.mean(dim=0)
            # Whitened features as logits: every class gets its share of the images.
            _, widths, axes = torch.linalg.svd(centred, full_matrices=False)
            self.last.weight.copy_(4.0 * 16 * axes[:CLASSES] / widths[:CLASSES, None])
            self.last.bias.copy_(-self.last.weight @ features.mean(dim=0))

    def features(self, images):
        x = torch.tanh(self.first((images - 128) / 40))
        return self.norm(torch.nn.functional.gelu(self.second(x))).mean(dim=(2, 3))

    def forward(self, images):
        return self.last(self.features(images))

    def class_logits(self, images, padding=None):
        return self(images)


def make_images(count: int, seed: int = 0) -> torch.Tensor:
    """float (N, 3, SIZE, SIZE): coloured blobs, so that classes differ."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 3, 3, generator=generator)
    smooth = nn.functional.interpolate(coarse, size=SIZE, mode="bilinear", align_corners=True)
    fine = torch.rand(count, 3, SIZE, SIZE, generator=generator)
    return (25 + 170 * smooth + 30 * fine).round()


class Wrapped(nn.Module):
    """A "defence" around the honest model."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Honest()

    def forward(self, images):
        return self.inner(images)

    def class_logits(self, images, padding=None):
        return self(images)


class DeadInside(Wrapped):
    """Passes no gradient to the middle of the image, where `with_objects` has the object."""

    def forward(self, images):
        inside = torch.zeros(SIZE, SIZE)
        inside[MIDDLE, MIDDLE] = 1.0
        return self.inner(images + inside * (images.detach() - images))


class LargeLogits(Wrapped):
    def forward(self, images):
        return 1000.0 * self.inner(images)


class Quantised(Wrapped):
    """Input rounded to steps of 16 levels, as "feature squeezing" does; no gradient passes."""

    def forward(self, images):
        return self.inner(16.0 * (images / 16.0).round())


class Probabilities(Wrapped):
    def forward(self, images):
        return (1000.0 * self.inner(images)).softmax(dim=1)


class NoisyInput(Wrapped):
    def forward(self, images):
        return self.inner(images + 12.0 * torch.randn_like(images))


class Detached(Wrapped):
    """Refines a reference twice and cuts the gradient between the rounds, as DINO does in training."""

    def __init__(self, cut: bool = True) -> None:
        super().__init__()
        self.cut = cut
        generator = torch.Generator().manual_seed(5)
        self.mix = nn.Parameter(torch.randn(CLASSES, CLASSES, generator=generator))

    def forward(self, images):
        reference = torch.tanh(self.inner(images) / 4)
        for _ in range(2):
            if self.cut:
                reference = reference.detach()
            reference = torch.tanh(self.inner(images) / 8 + reference @ self.mix)
        return 4 * reference


class FullyDetached(Wrapped):
    def forward(self, images):
        return self.inner(images.detach())


class TrainingNorm(Wrapped):
    """Batch statistics at test time, and running ones that move."""

    def train(self, mode: bool = True):
        super().train(mode)
        self.inner.norm.train()
        return self


class Drifting(Wrapped):
    """Adapts itself while it is evaluated."""

    def forward(self, images):
        with torch.no_grad():
            self.inner.last.bias += 1e-3
        return self.inner(images)


class NotANumber(Wrapped):
    def forward(self, images):
        return self.inner(images) / (images.flatten(1).mean(dim=1, keepdim=True) * 0.0)


class Half(Wrapped):
    def forward(self, images):
        return self.inner(images).half()


class Valley(nn.Module):
    """Two classes told apart by the mean level d above 128: a hill at 1.5 holds small steps, the way out is at 7."""

    def forward(self, images):
        d = images.mean(dim=(1, 2, 3)) - 128
        score = 0.5 * torch.exp(-((d - 1.5) ** 2)) - 1 + 3 * torch.sigmoid(4 * (d - 7))
        return torch.stack([torch.zeros_like(score), score], dim=1)


class Wave(nn.Module):
    """Right and wrong alternate along the way, so that the last step of an attack is not its best."""

    def forward(self, images):
        score = torch.sin(images.mean(dim=(1, 2, 3)) - 128 - 1.0)
        return torch.stack([torch.zeros_like(score), score], dim=1)


class Watershed(nn.Module):
    """Right and wrong by one pixel's level u above 128: uphill leads away from the way out, but from 5.4 on towards it,
    so that one random start in six within 8 gets there.
    """

    def forward(self, images):
        u = images[:, 0, 0, 0] - 128
        score = 0.5 * torch.sigmoid(3 - u) + 2 * torch.sigmoid(3 * (u - 7)) - 1
        return torch.stack([torch.zeros_like(score), score], dim=1)


class Chooser(nn.Module):
    """Reads the class from the `number` patches of 4 x 4 pixels that are the reddest. Those on the left speak for the
    first class, whatever they look like; those on the right for the second, the more the redder they are. Where the
    reddest is on the left, nothing tells the gradient that one on the right could overtake it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.number = 1

    def forward(self, images):
        red = nn.functional.avg_pool2d(images[:, :1], 4)[:, 0]
        left = torch.zeros_like(red)
        left[:, :, : red.shape[2] // 2] = 1.0
        blue = nn.functional.avg_pool2d(images[:, 2:], 4)[:, 0]
        votes = torch.stack([left * (1 + blue / 1e4), (1 - left) * (1 + red / 1e3)], dim=1).flatten(2)
        chosen = red.flatten(1).topk(self.number, dim=1).indices
        return 10 * votes.gather(2, chosen[:, None].expand(-1, 2, -1)).mean(dim=2) - 5

    def class_logits(self, images, padding=None):
        return self(images)

    @contextmanager
    def expanded_queries(self, factor):
        self.number = factor
        yield
        self.number = 1


def red_patches(count: int, lead: float) -> torch.Tensor:
    """Images for `Chooser`: the reddest patch is on the left, `lead` levels before the first one on the right."""
    images = torch.full((count, 3, SIZE, SIZE), 100.0)
    images[:, 0, 4:8, :4] = 150.0
    images[:, 0, 4:8, 8:] = 150.0 - lead
    images[:, 1] = torch.arange(count).view(-1, 1, 1)
    return images


class OnItems(nn.Module):
    """A model of images as one of the mapper's dicts, as evaluations take them."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def preprocess(self, items):
        return torch.stack([item["image"] for item in items]).float(), None

    def class_logits(self, images, padding=None):
        return self.model(images)

    def inference(self, images, padding=None):
        return [{"class_logits": logits} for logits in self.model(images)]


def with_objects(model: nn.Module, count: int) -> list[dict]:
    """The mapper's dicts of images whose object, of one part, is in the middle; the model is right about them."""
    images = make_images(count)
    with torch.no_grad():
        labels = model(images).argmax(dim=1)
    parts = torch.ones(SIZE, SIZE, dtype=torch.long)
    parts[MIDDLE, MIDDLE] = 0
    shared = {"sem_seg": parts, "part_supervision": "full"}
    return [
        {"image": image.byte(), "image_id": row, "class_id": int(labels[row]), **shared}
        for row, image in enumerate(images)
    ]


def grey(count: int) -> torch.Tensor:
    """Images of mean 128, for `Valley` and `Wave`."""
    images = make_images(count)
    return images - images.mean(dim=(1, 2, 3), keepdim=True) + 128
