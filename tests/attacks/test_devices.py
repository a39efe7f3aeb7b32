"""`torch.set_default_device` says where new tensors of the caller's go: the package's own go where its inputs are."""

import subprocess
import sys
import textwrap

import pytest
import torch

import ess_kernels as ek
from ess_kernels import aggregate, ess_minimal, operators, reference

BACKENDS = ("auto", "torch", "reference", "triton")
L = 9


def randn(*shape):
    return torch.randn(*shape, dtype=torch.float64, device="cpu")


def families():
    torch.manual_seed(0)
    q, k = randn(2, 1, L, 2, 3)
    g = -randn(1, L, 2, 3).abs()
    steps, rates = randn(1, 2, L).abs(), -randn(2, 3).abs()
    b, c = randn(2, 1, 3, L)
    A, B, C = randn(2, L, 2, 2) / 2, randn(2, L, 2), randn(2, L, 2)
    rows = q.transpose(1, 2), k.transpose(1, 2)
    T = randn(2, L, L)
    return {
        "dense": lambda: operators.dense(T),
        "attention": lambda: operators.attention(*rows, window_size=4, sinks=rates[:, 0]),
        "attention, mask": lambda: operators.attention(*rows, attn_mask=T[0]),
        "convolution": lambda: operators.convolution(steps[0]),
        "gated_convolution": lambda: operators.gated_convolution(steps, steps[0], steps),
        "short_convolution": lambda: operators.short_convolution(rates, L),
        "one tap": lambda: operators.short_convolution(rates[:, :1], L),
        "linear_attention": lambda: operators.linear_attention(q.abs(), k.abs(), normalize=True),
        "gla": lambda: operators.gla(q, k, g),
        "gla, growing": lambda: operators.gla(q, k, -g),
        "simple_gla": lambda: operators.simple_gla(q, k, g=g[..., 0]),
        "retention": lambda: operators.retention(q, k),
        "wla": lambda: operators.wla(q, k, g[0, 0]),
        "gla_s6": lambda: operators.gla_s6(q, k, -g, 5.0),
        "ssd": lambda: operators.ssd(-g[..., 0], rates[:, 0], q, k, dt_softplus=True, dt_limit=(0.0, 2.0)),
        "selective_scan": lambda: operators.selective_scan(steps, rates, b, c, delta_softplus=True),
        "recurrence": lambda: operators.recurrence(A, B, C, diagonal=False),
        "recurrence, growing": lambda: operators.recurrence(1e150 * A, B, C, diagonal=False),
        "recurrence, constant": lambda: operators.recurrence(A[:, 0], B[:, 0], C[:, 0], diagonal=False, length=L),
    }


def answers(op, backend):
    yield from ek.tolerance_ess(op, [0.1, 1e-7], backend=backend, certificate=True)[1]
    yield ek.tolerance_ess(op, [0.1, 0.0], [0.0, 0.1], positions=[5, 2, 5], backend=backend)
    yield ek.entropy_ess(op, backend=backend)
    yield ek.entropy_ess(op, [3, 2], backend=backend)
    yield ek.singular_values(op, [4, 3], backend=backend)


def everything(op, backend):
    """All that is computed from an operator, in a list of tensors."""
    found = [op.dense(), *answers(op, backend)]
    if backend == "auto":
        found += ek.randomized_ess(op, [4, 3], atol=[0.1, 0.3], rank=3)
        ess = ek.entropy_ess(op)
        found += [aggregate.cap(op, [1, 4]), aggregate.utilisation(ess, op), aggregate.saturated(ess, op)]
        found += [aggregate.average_ess(ess), reference.reference_singular_values(op, [3])]
    return found


@pytest.fixture(params=["meta", "cuda"])
def elsewhere(request):
    """A default device that is not the inputs'; without CUDA nothing can be made on it, which is what is wanted."""
    torch.set_default_device(request.param)
    yield
    torch.set_default_device(None)


@pytest.mark.parametrize("backend", BACKENDS[:3])
@pytest.mark.parametrize("name", families())
def test_every_call_stays_with_its_inputs(name, backend, elsewhere):
    found = everything(families()[name](), backend)
    torch.set_default_device(None)
    for x, wanted in zip(found, everything(families()[name](), backend), strict=True):
        assert x.device.type == "cpu"
        torch.testing.assert_close(x, wanted, rtol=0, atol=0, equal_nan=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gla", "dense", "attention", "recurrence", "selective_scan"])
def test_triton_stays_with_its_inputs(name, elsewhere):
    pytest.importorskip("triton")
    op = families()[name]()
    counts = ek.tolerance_ess(op, 0.1, backend="triton")
    ess = ek.entropy_ess(op, backend="triton")
    torch.set_default_device(None)
    assert torch.equal(counts, ek.tolerance_ess(families()[name](), 0.1))
    torch.testing.assert_close(ess, ek.entropy_ess(op), rtol=1e-4, atol=0)


@pytest.mark.parametrize("backend", BACKENDS[:3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_small_spectra_and_gradients(dtype, backend, elsewhere):
    A = randn(5, 4, 6).to(dtype)
    A[2, 0, 0] = torch.nan
    found = ek.small_spectra(A, right=A, atol=[0.1, 1.0], entropy=True, backend=backend)
    assert all(x.device.type == "cpu" for x in found) and bool((found.counts[:, 2] == -1).all())
    leaf = randn(L, L).requires_grad_()
    ek.entropy_ess(leaf).sum().backward()
    assert bool(leaf.grad.isfinite().all())


def test_the_page_that_explains_the_algorithm(elsewhere):
    T = randn(L, L)
    counts = ess_minimal.dense_counts(T, 0.1)
    assert counts.device.type == "cpu"
    torch.set_default_device(None)
    assert torch.equal(counts, ess_minimal.dense_counts(T, 0.1))


def test_the_first_use_of_a_process():
    """The library is tried at its first use, whose default device, autocast or mode are no fault of the library."""
    program = """
        import torch, ess_kernels as ek
        from ess_kernels.backends.native.choice import library
        T = torch.eye(9, dtype=torch.float64).roll(1, 0)
        with torch.device("meta"), torch.autocast("cpu", dtype=torch.bfloat16), torch.inference_mode():
            print(ek.tolerance_ess(T).tolist(), library().reason)
    """
    run = [sys.executable, "-W", "error", "-c", textwrap.dedent(program)]
    printed = subprocess.run(run, capture_output=True, text=True, check=True).stdout
    from ess_kernels.backends.native.choice import library

    assert printed.strip() == f"{[1] * 8} {library().reason}"
