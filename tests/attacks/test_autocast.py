"""Autocast, and permissions to multiply float32 in fewer bits, are the model's: no product of ours is rounded so."""

import pytest
import test_devices
import torch
from test_devices import BACKENDS, L, answers, families, randn

import ess_kernels as ek
from ess_kernels import operators, reference


def same(found, wanted):
    """Products in fewer bits would be wrong by 1e-3; torch's own move in the last bits with the alignment of memory."""
    for x, y in zip(found, wanted, strict=True):
        assert x.dtype == y.dtype
        torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-9, equal_nan=True)


def autocast(dtype=torch.bfloat16):
    return torch.autocast("cpu", dtype=dtype)


@pytest.mark.parametrize("backend", BACKENDS[:3])
@pytest.mark.parametrize("name", families())
def test_every_family(name, backend):
    op = families()[name]()
    with autocast():
        # gates, steps and row sums are made by constructors
        inside = families()[name]()
        found = [inside.dense(), *answers(inside, backend)]
    same(found, [op.dense(), *answers(op, backend)])


@pytest.mark.parametrize("name", families())
def test_operators_of_float32_inputs(name, monkeypatch):
    monkeypatch.setattr(test_devices, "randn", lambda *shape: randn(*shape).float())
    make = families()[name]
    with autocast(torch.float16):
        found = make().dense()
    same([found], [make().dense()])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gla", "dense", "attention", "recurrence"])
def test_triton(name):
    pytest.importorskip("triton")
    op = families()[name]()
    with autocast():
        found = ek.tolerance_ess(op, 0.1, backend="triton"), ek.entropy_ess(op, backend="triton")
    same(found, (ek.tolerance_ess(op, 0.1, backend="triton"), ek.entropy_ess(op, backend="triton")))


def product_error(**options):
    """The largest relative error of singular values of products in float32, against float64."""
    torch.manual_seed(0)
    A, B = randn(6, 40, 24).float(), randn(6, 30, 24).float()
    found = ek.small_spectra(A, right=B, **options).values
    wanted = torch.linalg.svdvals(A.double() @ B.double().mT)
    return float(((found - wanted).abs().amax(-1) / wanted[:, 0]).amax())


@pytest.mark.parametrize("backend", [*BACKENDS[:3], pytest.param("triton", marks=pytest.mark.slow)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_small_spectra_of_products(backend, dtype):
    if backend == "triton":
        pytest.importorskip("triton")
    with autocast(dtype):
        assert product_error(backend=backend) < 1e-6


@pytest.mark.parametrize("backend", BACKENDS[:3])
@pytest.mark.parametrize("precision", ["high", "medium"])
def test_precisions_of_float32_products(backend, precision):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        assert product_error(backend=backend) < 1e-6
    finally:
        torch.set_float32_matmul_precision(before)


def test_randomized_counts_gradients_and_the_reference():
    T = randn(2, L, L).float()
    leaf, again = (T.clone().requires_grad_() for _ in range(2))
    with autocast():
        found = [*ek.randomized_ess(T, [3, 4], atol=0.1, rank=2), reference.reference_entropy_ess(T)]
        ek.entropy_ess(operators.dense(leaf)).sum().backward()
    same(found, [*ek.randomized_ess(T, [3, 4], atol=0.1, rank=2), reference.reference_entropy_ess(T)])
    ek.entropy_ess(operators.dense(again)).sum().backward()
    same([leaf.grad], [again.grad])


def test_a_graph_inside_of_autocast():
    A = randn(3, 20, 12).float()

    def values(A):
        with autocast():
            return ek.small_spectra(A, right=A, backend="torch").values

    torch._dynamo.reset()
    found = torch.compile(values, fullgraph=True, backend="aot_eager")(A)
    same([found], [ek.small_spectra(A, right=A, backend="torch").values])
