"""The one-page version against the definition, and its promise to be short."""

import inspect

import pytest
import torch
from covering import covering
from torch.nn.functional import logsigmoid

from ess_kernels import ess_minimal, operators
from ess_kernels.reference import reference_entropy_ess, reference_tolerance_ess
from ess_kernels.testing import assert_close
from ess_kernels.testing.cases import build, randn, spectra

TOLERANCES = [1.0, 1e-1, 1e-3, 1e-4]


def test_it_fits_on_a_page():
    lines = inspect.getsource(ess_minimal).splitlines()
    assert len(lines) <= 120 and max(map(len, lines)) <= 120


@pytest.mark.parametrize("length", [1, 2, 3, 16, 37])
def test_dense(length):
    torch.manual_seed(length)
    for T in (randn(length, length), (3 * randn(length, length)).tril().softmax(-1)):
        if length == 1:
            continue
        for tau in TOLERANCES:
            assert torch.equal(ess_minimal.dense_counts(T, tau), reference_tolerance_ess(T, tau)), tau
        assert_close("entropy", ess_minimal.dense_entropy(T), reference_entropy_ess(T), rtol=1e-5)


@pytest.mark.parametrize("name", ["attention: plain", "attention: packed documents", "dense: rank 16 plus noise"])
def test_hard_dense_operators(name):
    op = build(name)
    T = op.dense_heads(op.all_heads())[0]
    for tau in TOLERANCES:
        assert torch.equal(ess_minimal.dense_counts(T, tau), reference_tolerance_ess(T, tau))
    wanted = reference_entropy_ess(T)
    assert_close("entropy", ess_minimal.dense_entropy(T)[wanted > 0], wanted[wanted > 0], rtol=1e-4)


@covering(sizes=[(2, 3), (3, 1), (16, 4), (41, 5), (50, 20)], decay=[0.0, 1 / 16, 20.0])
def test_gated(sizes, decay):
    length, n = sizes
    torch.manual_seed(length + n)
    q, k, g = randn(length, n), randn(length, n), decay * logsigmoid(randn(length, n))
    op = operators.gla(*(x[None, :, None] for x in (q, k, g)), scale=1.0)
    for tau in TOLERANCES:
        expected = reference_tolerance_ess(op, tau)[0, 0]
        for c in (1, 7, 16):
            assert torch.equal(ess_minimal.gated_counts(q, k, g, tau, c), expected), (tau, c)


@pytest.mark.parametrize(
    "name", ["gla: resets", "gla: packed documents", "gla: repeated keys", "gla: dead coordinates"]
)
def test_hard_recurrences(name):
    op = build(name)
    known = spectra(op)
    q, k, g = (x[0, :, 0] for x in (op.q, op.k, op.g))
    for tau in TOLERANCES:
        assert torch.equal(ess_minimal.gated_counts(q, k, g, tau), (known.values[0] > tau).sum(-1))
