"""Tiny captures for the LN editor, and its twin: all rows pooled at once and the dense primal problem solved."""

from __future__ import annotations

import torch

from stablediag.editors.base import Applied
from stablediag.editors.ln_controls import permutation
from stablediag.editors.ln_params import LNParams
from stablediag.models import ResolvedModule
from stablediag.types import Capture, Edit, EditBatch

D_IN, D_OUT, ROWS = 9, 5, 8
NAMES = ("a", "b")


def make_modules():
    return {
        name: ResolvedModule(name, torch.nn.Linear(D_IN, D_OUT, bias=False), "linear", D_IN, D_OUT) for name in NAMES
    }


def make_captures(step, *, rows=ROWS, scale=1.0):
    generator = torch.Generator().manual_seed(step)
    captures = {}
    for i, name in enumerate(NAMES):
        captures[name] = Capture(
            module=name,
            keys=torch.randn(rows, D_IN, generator=generator, dtype=torch.float64) + 0.3 * i,
            grads=scale * torch.randn(rows, D_OUT, generator=generator, dtype=torch.float64) + 0.2,
            edit_ids=torch.arange(rows),
            block_ids=torch.arange(rows) // 4,
            positions=torch.zeros(rows, dtype=torch.int64),
            weights=torch.ones(rows),
            outputs=None,
            loss=1.0,
        )
    return captures


def batch(index, phase="target"):
    return EditBatch(index, phase, tuple(Edit(f"{index}:{i}", "p", "t") for i in range(ROWS)))


def run_step(editor, index, captures, phase="target"):
    proposals = list(editor.step(None, batch(index, phase), captures))
    editor.commit(None, [Applied(p, None) for p in proposals])
    return {p.module: p.update.dense() for p in proposals}


def twin(history, captures, params: LNParams, name):
    """Dense update of one module from all rows seen so far, by definition; `history` includes this step or not."""
    members = NAMES if params.stats_scope == "shape" else (name,)
    keys = torch.cat([h[m].keys for h in history for m in members])
    grads = torch.cat([h[m].grads for h in history for m in members])
    if params.statistics == "shuffled":
        # Moments of rows whose features stand in another order, for rows whose features do not.
        scope, seed = f"shape:{D_IN}x{D_OUT}" if params.stats_scope == "shape" else name, params.statistics_seed
        keys = keys[:, permutation(D_IN, seed=seed, name=f"{scope}/keys")]
        grads = grads[:, permutation(D_OUT, seed=seed, name=f"{scope}/grads")]
    n, d = grads.shape
    mean, centred = grads.mean(0), grads - grads.mean(0)
    scatter = centred.T @ centred
    if params.prior_kind == "absolute":
        scatter = scatter + params.prior * torch.eye(d, dtype=torch.float64)
    if params.prior_kind == "relative":
        first = torch.cat([history[0][m].grads for m in members])
        first = first - first.mean(0)
        scatter = scatter + params.prior * first.pow(2).sum() / d * torch.eye(d, dtype=torch.float64)
    if not params.center:
        mean = torch.zeros_like(mean)
    h, v = captures[name].keys, captures[name].grads
    if params.normaliser == "full" and n > d + 1:
        sigma = scatter / (n - d - 1)
        sigma = (1 - params.shrinkage) * sigma + params.shrinkage * sigma.trace() / d * torch.eye(
            d, dtype=torch.float64
        )
        values, vectors = torch.linalg.eigh(sigma)
        floor = {"none": 0.0, "absolute": params.floor, "relative": params.floor * sigma.trace() / d}[params.floor_kind]
        v = (v - mean) @ vectors @ torch.diag(values.clamp_min(floor).rsqrt()) @ vectors.T
    elif params.normaliser in ("full", "diagonal"):
        v = (v - mean) / centred.pow(2).sum(0).div(n - 1).sqrt()
    elif params.normaliser == "scalar":
        v = (v - mean) / (centred.pow(2).sum() / (d * (n - 1))).sqrt()
    elif params.normaliser == "center":
        v = v - mean
    c = torch.ones(len(h), dtype=torch.float64)
    if params.coefficient == "standardised":
        c = ((h - keys.mean(0)) / keys.std(0)).pow(2).sum(1)
    elif params.coefficient == "raw":
        c = h.pow(2).sum(1)
    target = -params.lr * c[:, None] * v
    return torch.linalg.solve(h.T @ h + params.ridge * torch.eye(D_IN, dtype=torch.float64), h.T @ target)
