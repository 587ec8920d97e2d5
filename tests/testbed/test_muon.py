"""Muon: orthogonalisation against the singular value decomposition, and the size of an update."""

from __future__ import annotations

import pytest
import torch

from stablediag.testbed.muon import Muon, orthogonalise


@pytest.mark.parametrize("shape", [(32, 32), (24, 64), (64, 24), (3, 16, 40)])
def test_orthogonalise_keeps_singular_vectors_and_flattens_singular_values(shape):
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(*shape, generator=generator, dtype=torch.float64)
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    inside = u.mT @ orthogonalise(matrix) @ vh.mT
    flattened = torch.diagonal(inside, dim1=-2, dim2=-1)
    assert torch.allclose(inside, torch.diag_embed(flattened), atol=1e-9)
    # A singular value below about 1e-3 of the norm is too small for five iterations; these are all above.
    assert float((s / torch.linalg.matrix_norm(matrix)[..., None]).min()) > 1e-3
    assert float(flattened.min()) > 0.35
    assert float(flattened.max()) < 1.3


def test_orthogonalise_ignores_scale():
    matrix = torch.randn(16, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert torch.allclose(orthogonalise(matrix), orthogonalise(1e4 * matrix), atol=1e-8)


def test_first_update_has_the_stated_size_and_direction():
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.zeros(32, 64))
    target = torch.randn(32, 64)
    optimizer = Muon([weight], lr=0.01)
    (weight - target).square().sum().backward()
    optimizer.step()
    assert float(weight.detach().square().mean().sqrt()) == pytest.approx(0.2 * 0.01, rel=0.3)
    assert float((weight.detach() * target).sum()) > 0


def test_muon_fits_a_linear_map():
    torch.manual_seed(0)
    layer = torch.nn.Linear(16, 16, bias=False)
    map_, inputs = torch.randn(16, 16) / 4, torch.randn(256, 16)
    optimizer = Muon(layer.parameters(), lr=0.05)
    for step in range(200):
        optimizer.param_groups[0]["lr"] = 0.05 * (1 - step / 200)
        loss = (layer(inputs) - inputs @ map_.T).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 1e-3


def test_decay_and_absent_gradients():
    still, decayed = torch.nn.Parameter(torch.ones(4, 4)), torch.nn.Parameter(torch.ones(4, 4))
    decayed.grad = torch.zeros(4, 4)
    Muon([still, decayed], lr=0.1, weight_decay=0.5).step()
    assert torch.equal(still.detach(), torch.ones(4, 4))
    assert torch.allclose(decayed.detach(), torch.full((4, 4), 0.95))
