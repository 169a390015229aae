import numpy as np
import pytest
import torch
from torch import nn

from cimf.methods.layered.survey import dense_rows
from cimf.network.layers import LayerGraph
from cimf.network.patches import PatchGram, grid, patches
from cimf.statistics import Gram

LAYERS = {
    "3x3": (nn.Conv2d(3, 4, 3, padding=1), (3, 7, 6)),
    "groups and stride": (nn.Conv2d(4, 6, 3, stride=2, groups=2, bias=False), (4, 9, 8)),
    "dilation": (nn.Conv2d(2, 3, (3, 1), dilation=(2, 1), padding="same"), (2, 8, 8)),
    "circular": (nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), (2, 5, 5)),
    "1x1": (nn.Conv2d(5, 3, 1, stride=2), (5, 6, 6)),
    "one dimension": (nn.Conv1d(3, 4, 5, stride=3, padding=2), (3, 16)),
    "linear": (nn.Linear(5, 3), (5,)),
    "tokens": (nn.Linear(5, 3), (4, 5)),
}


def case(name):
    torch.manual_seed(1)
    module, shape = LAYERS[name]
    x = torch.randn(6, *shape, dtype=torch.float64)
    graph = LayerGraph(nn.Sequential(module.double()), x)
    return graph.layers[0], x, module(x).detach()


@pytest.mark.parametrize("name", LAYERS)
def test_rows_times_patches_are_the_layer(name):
    layer, x, z = case(name)
    views = patches(layer, x, (slice(None),) * max(0, z.ndim - 2))
    rows = torch.from_numpy(dense_rows(layer))[:, : layer.n_columns]
    size = layer.n_rows // layer.groups
    parts = [
        views[g].reshape(-1, layer.n_columns) @ rows[g * size : (g + 1) * size].T
        for g in range(layer.groups)
    ]
    out = torch.cat(parts, dim=1)
    if layer.has_bias:
        out = out + layer.module.bias
    flat = z.movedim(1, -1) if hasattr(layer.module, "stride") else z
    torch.testing.assert_close(out, flat.reshape(-1, layer.n_rows))


@pytest.mark.parametrize("name", [name for name in LAYERS if name != "circular"])
def test_repeats_count_the_entries_of_the_unrolled_matrix(name):
    module, shape = LAYERS[name]
    x = torch.randn(2, *shape, dtype=torch.float64)
    layer = LayerGraph(nn.Sequential(module.double()), x).layers[0]
    bias = torch.zeros(layer.n_rows) if layer.has_bias else None

    def count(weight):
        with torch.no_grad():
            return int((layer(eye, {layer.path: (weight, bias)}) != 0).sum())

    eye = torch.eye(int(np.prod(shape)), dtype=torch.float64).reshape(-1, *shape)
    every = torch.ones(layer.n_rows, layer.n_columns)
    assert count(every) == layer.n_rows * int(layer.repeats.sum())
    for column in range(layer.n_columns):
        one = torch.zeros(layer.n_rows, layer.n_columns)
        one[0, column] = 1.0
        assert count(one) == layer.repeats[column]


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("limit", [None, 4])
def test_streamed_statistics_equal_those_of_the_whole_design(name, limit):
    layer, x, z = case(name)
    rng = np.random.default_rng(0)
    streamed = PatchGram(layer)
    designs, goals = [], []
    for u, t in zip(x.split(2), z.split(2), strict=True):
        where = grid(layer, t, limit, rng)
        streamed.update(u, t, where)
        designs.append(patches(layer, u, where).reshape(layer.groups, -1, layer.n_columns))
        spatial = t[(slice(None), slice(None), *where)] if where else t
        moved = spatial.movedim(1, -1) if hasattr(layer.module, "stride") else spatial
        goals.append(moved.reshape(-1, layer.n_rows))
    design, goal = torch.cat(designs, dim=1).numpy(), torch.cat(goals).numpy()
    size = layer.n_rows // layer.groups
    for g in range(layer.groups):
        m = design[g]
        if layer.has_bias:
            m = np.column_stack([m, np.ones(len(m))])
        expected = Gram.from_arrays(m, goal[:, g * size : (g + 1) * size])
        found = streamed.group(g)
        np.testing.assert_allclose(found.gram, expected.gram, atol=1e-10)
        np.testing.assert_allclose(found.corr, expected.corr, atol=1e-10)
        np.testing.assert_allclose(found.target_sq, expected.target_sq)
        assert found.n_samples == len(m)


def test_the_grid_visits_every_position_over_the_batches():
    layer, _, z = case("3x3")
    rng = np.random.default_rng(0)
    seen = np.zeros(z.shape[2:], dtype=int)
    for _ in range(60):
        seen[grid(layer, z, 4, rng)] += 1
    assert seen.min() > 0
    assert seen.sum() / 60 == pytest.approx(42 / 9, rel=0.5)
