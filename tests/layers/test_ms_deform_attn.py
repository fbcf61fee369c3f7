"""Multi-scale deformable attention against a slow loop over the published formula, and its gradients."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from part_robust.layers.ms_deform_attn import MSDeformAttn, ms_deform_attn

SHAPES = [(3, 4), (2, 2), (1, 1)]
TOKENS = sum(h * w for h, w in SHAPES)
BACKENDS = ["sparse", "embedding_bag", "gather", "grid_sample"]


def inputs(images: int = 2, queries: int = 3, heads: int = 2, channels: int = 3, points: int = 2, spread: float = 0.4):
    """Locations partly outside of the map."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    value = normal(images, TOKENS, heads, channels)
    locations = 0.5 + spread * normal(images, queries, heads, len(SHAPES), points, 2)
    weights = normal(images, queries, heads, len(SHAPES) * points).softmax(dim=-1)
    return value, locations, weights.unflatten(-1, (len(SHAPES), points))


def slow(value, shapes, locations, weights):
    """One sample at a time: zero outside of the map, pixel i at (i + 0.5) / w."""
    images, queries, heads, levels, points, _ = locations.shape
    result = torch.zeros(images, queries, heads, value.shape[-1], dtype=value.dtype)
    for n, q, h, level, p in itertools.product(*map(range, (images, queries, heads, levels, points))):
        height, width = shapes[level]
        start = sum(a * b for a, b in shapes[:level])
        x = float(locations[n, q, h, level, p, 0]) * width - 0.5
        y = float(locations[n, q, h, level, p, 1]) * height - 0.5
        for row, column in itertools.product((math.floor(y), math.floor(y) + 1), (math.floor(x), math.floor(x) + 1)):
            if 0 <= row < height and 0 <= column < width:
                share = (1 - abs(y - row)) * (1 - abs(x - column)) * weights[n, q, h, level, p]
                result[n, q, h] += share * value[n, start + row * width + column, h]
    return result.flatten(2)


@pytest.mark.parametrize("backend", [*BACKENDS, "auto"])
def test_equals_the_slow_loop(backend):
    value, locations, weights = inputs()
    torch.testing.assert_close(
        ms_deform_attn(value, SHAPES, locations, weights, backend), slow(value, SHAPES, locations, weights)
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients(backend):
    arguments = [x.requires_grad_(True) for x in inputs(images=1, queries=1, channels=2, points=1)]
    assert torch.autograd.gradcheck(lambda v, x, w: ms_deform_attn(v, SHAPES, x, w, backend), arguments)


def test_gather_can_be_differentiated_twice():
    arguments = [x.requires_grad_(True) for x in inputs(images=1, queries=1, heads=1, channels=1, points=1)]
    assert torch.autograd.gradgradcheck(lambda v, x, w: ms_deform_attn(v, SHAPES, x, w, "gather"), arguments)


@pytest.mark.parametrize("backend", BACKENDS)
def test_far_away_is_zero_with_zero_gradient(backend):
    value, locations, weights = inputs(spread=0.0)
    locations = (locations + 1e6).requires_grad_(True)
    result = ms_deform_attn(value, SHAPES, locations, weights, backend)
    assert not result.any()
    result.sum().backward()
    assert not locations.grad.any()


def test_backends_are_equal_in_float32_and_bfloat16():
    value, locations, weights = (x.float() for x in inputs())
    first, *others = (ms_deform_attn(value, SHAPES, locations, weights, backend) for backend in BACKENDS)
    for other in others:
        torch.testing.assert_close(first, other)
    for backend in BACKENDS:
        low = ms_deform_attn(value.bfloat16(), SHAPES, locations, weights, backend)
        assert low.dtype == torch.bfloat16
        torch.testing.assert_close(low.float(), first, atol=0.02, rtol=0.02)


def module(**options) -> MSDeformAttn:
    torch.manual_seed(0)
    result = MSDeformAttn(dim=16, heads=4, levels=3, points=2, **options)
    for parameter in result.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return result


@pytest.mark.parametrize("sides", [2, 4])
def test_module_offsets_are_pixels_around_points_and_half_sides_around_boxes(sides):
    attention = module()
    query, memory = torch.randn(2, 5, 16), torch.randn(2, TOKENS, 16)
    reference = torch.rand(2, 5, 3, sides)
    result = attention(query, reference, memory, SHAPES)
    offsets = attention.sampling_offsets(query).view(2, 5, 4, 3, 2, 2)
    if sides == 2:
        size = torch.tensor([(w, h) for h, w in SHAPES]).view(1, 1, 1, 3, 1, 2)
        locations = reference.view(2, 5, 1, 3, 1, 2) + offsets / size
    else:
        box = reference.view(2, 5, 1, 3, 1, 4)
        locations = box[..., :2] + offsets / 2 * box[..., 2:] / 2
    weights = attention.attention_weights(query).view(2, 5, 4, 6).softmax(-1).view(2, 5, 4, 3, 2)
    value = attention.value_proj(memory).view(2, TOKENS, 4, 4)
    torch.testing.assert_close(result, attention.output_proj(slow(value, SHAPES, locations, weights)))


def test_padding_counts_as_zero_value():
    attention = module()
    query, reference, memory = torch.randn(1, 5, 16), torch.rand(1, 5, 1, 2), torch.randn(1, TOKENS, 16)
    padding = torch.zeros(1, TOKENS, dtype=torch.bool)
    padding[0, 5:9] = True
    result = attention(query, reference, memory, SHAPES, padding)
    torch.testing.assert_close(result, attention(query, reference, memory + 100 * padding[..., None], SHAPES, padding))
    assert not torch.allclose(result, attention(query, reference, memory, SHAPES))


def test_autocast_and_compile():
    attention = module()
    query, reference, memory = torch.randn(1, 5, 16), torch.rand(1, 5, 1, 2), torch.randn(1, TOKENS, 16)
    expected = attention(query, reference, memory, SHAPES)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(attention(query, reference, memory, SHAPES).float(), expected, atol=0.05, rtol=0.05)
    compiled = torch.compile(attention, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(query, reference, memory, SHAPES), expected)


def test_heads_start_in_eight_directions():
    bias = MSDeformAttn().sampling_offsets.bias.detach().view(8, 4, 4, 2)
    directions = torch.tensor([(1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1)]).float()
    torch.testing.assert_close(bias[:, 0, 0], directions, atol=1e-5, rtol=0)
    torch.testing.assert_close(bias[:, 3, 3], 4 * directions, atol=1e-5, rtol=0)


def test_impossible_arguments():
    value, locations, weights = inputs()
    with pytest.raises(ValueError, match="embedding_bag"):
        ms_deform_attn(value, SHAPES, locations, weights, "cuda")
    with pytest.raises(ValueError, match="pixels"):
        ms_deform_attn(value[:, 1:], SHAPES, locations, weights)
    with pytest.raises(ValueError, match="heads"):
        MSDeformAttn(dim=10, heads=4)
