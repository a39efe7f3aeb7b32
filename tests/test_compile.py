"""Under `torch.compile`: one graph from the tensors to the numbers, the same numbers, the same errors."""

import shutil
import subprocess
import sys

import pytest
import torch
from torch._dynamo.exc import Unsupported
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.functional import logsigmoid
from torch.utils._pytree import tree_leaves

import ess_kernels as ek
from ess_kernels import _ops, operators
from ess_kernels.backends import TorchBackend
from ess_kernels.backends.native import NativeBackend
from ess_kernels.operators import packing
from ess_kernels.testing.cases import build, rand, randn

LENGTH = 20

# what is made inside a graph before the operator is; `OperatorTestCase` compiles the constructors of all families
MADE_IN_GRAPHS = {
    "gla": (lambda q, k, g: operators.gla(q, k, logsigmoid(g), scale=0.3), [(1, LENGTH, 2, 3)] * 3),
    "recurrence, constant": (
        lambda A, B, C: operators.recurrence(A.sigmoid(), B, C, diagonal=True, length=LENGTH),
        [(2, 3)] * 3,
    ),
    "attention": (operators.attention, [(1, 2, LENGTH, 3), (1, 1, LENGTH, 3)]),
    "attention, all options": (
        lambda q, k, mask, sinks: operators.attention(
            q, k, scale=0.4, attn_mask=mask > -1, window_size=7, softcap=3.0, sinks=sinks
        ),
        [(1, 2, LENGTH, 3), (1, 1, LENGTH, 3), (LENGTH, LENGTH), (2,)],
    ),
    "a matrix in place of an operator": (lambda T: T, [(2, LENGTH, LENGTH)]),
}

METRICS = {
    "tolerance": lambda op: ek.tolerance_ess(op, 0.3),
    "tolerances, certificate": lambda op: ek.tolerance_ess(
        op, [0.3, 0.0], rtol=[0.0, 0.1], positions=range(1, LENGTH, 3), certificate=True
    ),
    "entropy": lambda op: ek.entropy_ess(op, [7, 3, 7, 8, 9, 10]),
    "singular values": lambda op: ek.singular_values(op, (5, 4)),
}


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()


def inputs(name):
    torch.manual_seed(len(name))
    return [randn(*shape) for shape in MADE_IN_GRAPHS[name][1]]


def compiled(function, **options):
    return torch.compile(function, fullgraph=True, **{"backend": "aot_eager"} | options)


def check_same(found, wanted):
    found, wanted = tree_leaves(found), tree_leaves(wanted)
    assert [x.dtype for x in found] == [x.dtype for x in wanted]
    assert all(torch.equal(x, y) for x, y in zip(found, wanted, strict=True))


# --- one graph, the same numbers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MADE_IN_GRAPHS)
def test_one_graph_from_tensors_to_numbers(name):
    make = MADE_IN_GRAPHS[name][0]

    def everything(*tensors):
        op = make(*tensors)
        return [metric(op) for metric in METRICS.values()]

    counter = CompileCounterWithBackend("aot_eager")
    function = compiled(everything, backend=counter)
    for _ in range(2):
        tensors = inputs(name)
        check_same(function(*tensors), everything(*tensors))
    assert counter.frame_count == 1


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("backend", ["auto", "reference", "torch"])
def test_every_backend_is_called_from_the_graph(metric, backend):
    tensors = inputs("gla")

    def function(*tensors):
        op = operators.gla(*tensors)
        return {
            "tolerance": lambda: ek.tolerance_ess(op, backend=backend),
            "tolerances, certificate": lambda: ek.tolerance_ess(op, [1, 0.1], backend=backend, certificate=True),
            "entropy": lambda: ek.entropy_ess(op, backend=backend),
            "singular values": lambda: ek.singular_values(op, [3], k=5, backend=backend),
        }[metric]()

    found = compiled(function)(*tensors)
    check_same(found, function(*tensors))
    if metric == "tolerances, certificate":
        assert isinstance(found[1], ek.Certificate)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_small_spectra(dtype):
    torch.manual_seed(0)
    A, right = torch.randn(2, 3, 6, 4, dtype=dtype), torch.randn(2, 3, 5, 4, dtype=dtype)
    A[0, 1, 2, 2] = torch.nan
    for call in (
        lambda A, right: ek.small_spectra(A, right=right, atol=[0.1, 1.0], entropy=True),
        lambda A, right: ek.small_spectra(A, atol=0.5),
        lambda A, right: ek.small_spectra(A),
    ):
        found, wanted = compiled(call)(A, right), call(A, right)
        assert isinstance(found, ek.SmallSpectra)
        assert [x is None for x in found] == [x is None for x in wanted]
        for x, y in zip(found, wanted):
            if x is not None:
                assert x.dtype == y.dtype and torch.equal(x.nan_to_num(-7), y.nan_to_num(-7))


def test_bad_data_and_redone_positions():
    torch.manual_seed(1)
    T = torch.stack([randn(12, 12), torch.diag(torch.full((11,), 0.5), -1).double()])
    T[0, 5, 2] = torch.nan
    call = lambda T: ek.tolerance_ess(T, [0.5, 0.0], certificate=True)  # noqa: E731
    counts, certificate = compiled(call)(T)
    check_same((counts, *certificate), call(T))
    assert bool((counts[:, 0] == -1).all()) and bool(certificate.redone[0, 1].any())


@pytest.mark.parametrize("length", [0, 1, 2])
def test_nothing_to_measure(length):
    T = randn(2, length, length)
    call = lambda T: (ek.tolerance_ess(T), ek.entropy_ess(T), ek.singular_values(T, None), ek.entropy_ess(T, []))  # noqa: E731
    found = compiled(call)(T)
    check_same(found, call(T))
    assert [tuple(x.shape) for x in found[:2]] == [(2, max(length - 1, 0))] * 2
    no_head = randn(0, 5, 5)
    check_same(compiled(call)(no_head), call(no_head))


@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="inductor needs a C++ compiler")
def test_inductor():
    tensors = inputs("gla")
    call = lambda *x: ek.tolerance_ess(operators.gla(*x), certificate=True)  # noqa: E731
    check_same(compiled(call, backend="inductor")(*tensors), call(*tensors))


# --- what makes a new graph, and what does not ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "metric",
    [
        lambda op: ek.tolerance_ess(op, [0.1, 1.0], certificate=True),
        lambda op: ek.tolerance_ess(op, positions=[9, 3, 9]),
        lambda op: ek.entropy_ess(op),
        lambda op: ek.entropy_ess(op, [op.length // 2, 1, op.length - 1]),
        lambda op: ek.singular_values(op, [3, 9]),
    ],
    ids=["all positions", "some positions", "entropy", "positions that depend on the length", "singular values"],
)
@pytest.mark.parametrize("family", ["gla", "dense"])
def test_one_graph_for_all_lengths(family, metric):
    counter = CompileCounterWithBackend("aot_eager")
    make, shapes = {"gla": (operators.gla, [(1, 0, 2, 3)] * 3), "dense": (operators.dense, [(2, 0, 0)])}[family]
    function = compiled(lambda *x: metric(make(*x)), backend=counter)
    for length in (20, 23, 31):
        tensors = [-rand(*(length if size == 0 else size for size in shape)) for shape in shapes]
        for x, shape in zip(tensors, shapes):
            for axis, size in enumerate(shape):
                if size == 0:
                    torch._dynamo.mark_dynamic(x, axis)
        check_same(function(*tensors), metric(make(*tensors)))
    assert counter.frame_count == 1


def test_arguments_that_change():
    T = randn(2, 10, 10)
    call = lambda T, atol, positions: ek.tolerance_ess(T, atol, positions=positions)  # noqa: E731
    for atol in (0.1, 0.2, 1, [0.1, 0.4], (0.3,)):
        check_same(compiled(call)(T, atol, [3, 4]), call(T, atol, [3, 4]))
    torch._dynamo.reset()
    for positions in ([1, 2], [3, 4], [4, 5], (9,), range(1, 5), range(2, 9), range(2, 6, 3), None):
        check_same(compiled(call)(T, 0.1, positions), call(T, 0.1, positions))


# --- gradients --------------------------------------------------------------------------------------------------------


def with_gradients(name):
    return [x.requires_grad_() for x in inputs(name)]


def test_counts_and_values_of_what_requires_grad():
    call = lambda *x: (ek.tolerance_ess(operators.gla(*x)), ek.singular_values(operators.gla(*x), [4]))  # noqa: E731
    found = compiled(call)(*with_gradients("gla"))
    assert not any(x.requires_grad for x in found)
    check_same(found, call(*inputs("gla")))
    spectra = compiled(lambda A: ek.small_spectra(A, entropy=True))(randn(2, 3, 3).requires_grad_())
    assert not spectra.values.requires_grad and not spectra.entropy.requires_grad
    entropy = lambda *x: ek.entropy_ess(operators.gla(*x))  # noqa: E731
    with torch.no_grad():
        found = compiled(entropy)(*with_gradients("gla"))
    check_same(found, entropy(*inputs("gla")))


@pytest.mark.parametrize("name", ["gla", "attention", "a matrix in place of an operator"])
def test_a_differentiable_entropy_ends_the_graph_and_keeps_its_gradient(name):
    make = MADE_IN_GRAPHS[name][0]
    call = lambda *x: 2 * ek.entropy_ess(make(*x), [3, 9])  # noqa: E731
    with pytest.raises(Unsupported, match="the gradient of entropy_ess is not compiled"):
        compiled(call)(*with_gradients(name))
    torch._dynamo.reset()
    gradients = []
    for function in (call, torch.compile(call, backend="aot_eager")):
        tensors = with_gradients(name)
        gradients.append(torch.autograd.grad(function(*tensors).sum(), tensors))
    check_same(*gradients)


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [RuntimeError, ValueError, KeyboardInterrupt, MemoryError])
def test_exceptions_pass_through(error, monkeypatch):
    def fail(*_):
        raise error("out of luck")

    for task in ("tolerance_ess", "entropy_ess", "singular_values", "small_spectra"):
        for backend in (TorchBackend, NativeBackend):
            monkeypatch.setattr(backend, task, fail)
    T = randn(5, 5)
    for call in (
        ek.tolerance_ess,
        ek.entropy_ess,
        lambda T: ek.singular_values(T, [2]),
        ek.small_spectra,
    ):
        for function in (call, compiled(call)):
            with pytest.raises(error, match=r"^out of luck$") as caught:
                function(T)
            assert caught.type is error


def test_wrong_arguments_of_a_compiled_function():
    T = randn(5, 5)
    for call, message in (
        (lambda T: ek.tolerance_ess(T, positions=[1, 7]), r"positions: expected integers in 1\.\.4, got 7"),
        (lambda T: ek.entropy_ess(T, [True]), r"positions: expected integers in 1\.\.4, got True"),
        (lambda T: ek.tolerance_ess(T, [0.1, -1.0]), r"atol: expected values >= 0, got -1\.0"),
        (lambda T: ek.entropy_ess(T, backend="cuda"), r"backend: expected one of .*got 'cuda'"),
    ):
        with pytest.raises(ValueError, match=message):
            torch.compile(call, backend="aot_eager")(T)


class OneOfMyOwn(operators.Tiled):
    def __init__(self, T):
        super().__init__(T.shape[-1], T.shape[:-2], None, (T,))
        self.T = T

    def rows(self, heads, start, stop):
        return self.take(self.T, heads)[:, start:stop, :stop].double().tril(start)

    def finite(self, heads):
        return torch.ones(len(heads), dtype=torch.bool)


def test_operators_of_other_classes_end_the_graph():
    T = randn(2, 7, 7)
    call = lambda T: ek.tolerance_ess(OneOfMyOwn(T), 0.3) + 1  # noqa: E731
    with pytest.raises(Unsupported, match=r"only operators of ess_kernels\.operators"):
        compiled(call)(T)
    torch._dynamo.reset()
    check_same(torch.compile(call, backend="aot_eager")(T), ek.tolerance_ess(T, 0.3) + 1)
    assert packing.pack(OneOfMyOwn(T)) is None


# --- the ops themselves -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["gla: resets", "ssd: groups", "recurrence: dense", "attention: mask", "short_convolution: four taps"]
)
def test_ops_keep_the_rules(name):
    """Schema, fake tensors, no aliasing, dynamic shapes."""
    parts = packing.pack(build(name))
    some, every = [7, 3, 7], None
    opcheck(torch.ops.ess_kernels.tolerance_ess, (*parts, [0.3, 0.0], [0.0, 0.1], some, "torch"))
    opcheck(torch.ops.ess_kernels.entropy_ess, (*parts, every, "auto"))
    opcheck(torch.ops.ess_kernels.singular_values, (*parts, some, None, "torch"))


def test_spectra_op_keeps_the_rules():
    A = torch.randn(2, 4, 3)
    opcheck(torch.ops.ess_kernels.small_spectra, (A, None, None, False, "torch"))
    opcheck(torch.ops.ess_kernels.small_spectra, (A, torch.randn(2, 5, 3), [0.1, 0.2], True, "auto"))


def opcheck(packet, arguments):
    results = torch.library.opcheck(packet.default, arguments)
    assert set(results.values()) == {"SUCCESS"}


def test_floats_come_before_integers():
    for name in ("tolerance_ess", "entropy_ess", "singular_values", "small_spectra"):
        assert str(getattr(torch.ops.ess_kernels, name).default._schema).startswith(f"ess_kernels::{name}(")
    found = _ops.tolerance_ess(build("dense: noise"), [0.1], [0.0], None, "auto")
    assert [x.dtype for x in found] == [torch.float64, torch.int64, torch.bool, torch.bool]
    found = _ops.small_spectra(torch.ones(2, 2), None, [0.1], True, "auto")
    assert [x.dtype for x in found] == [torch.float32, torch.float32, torch.int64]


def test_calls_outside_of_graphs_load_no_compiler():
    code = """
import sys, torch, ess_kernels as ek
T = torch.ones(5, 5)
ek.tolerance_ess(T, certificate=True), ek.entropy_ess(T), ek.singular_values(T, [2]), ek.small_spectra(T)
print([name for name in ("torch._dynamo", "torch._inductor", "triton") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
