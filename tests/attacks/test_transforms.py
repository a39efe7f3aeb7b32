"""Which entry point takes which kind of tensor, under which transform: a table of decisions.

Each either works, with the numbers of the ordinary tensor, or raises an error that names the argument and what to do.
"""

from contextlib import contextmanager

import pytest
import torch
import torch.autograd.forward_ad as forward
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

import ess_kernels as ek
from ess_kernels import aggregate, metrics, operators, reference
from ess_kernels.operators.structure import Tiled
from ess_kernels.testing import assert_close

# several kinds of tensors are prototypes, which PyTorch says once a process
pytestmark = pytest.mark.filterwarnings("ignore")
L, N = 6, 2


def randn(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


# --- entry points: functions of one tensor [2, L, L] or, for constructors, of the shape beside them -------------------

COUNTS = {"tolerance_ess": lambda T: ek.tolerance_ess(T, 0.1)}
SMOOTH = {
    "entropy_ess": ek.entropy_ess,
    "soft_ess": lambda T: metrics.soft_ess(T, 0.1),
    "nuclear_norm": metrics.nuclear_norm,
}
VALUES = {
    **SMOOTH,
    "singular_values": lambda T: ek.singular_values(T, [3]),
    "small_spectra": lambda A: ek.small_spectra(A, right=A, atol=0.1, entropy=True).values,
}
RANDOMIZED = {"randomized_ess": lambda T: ek.randomized_ess(T, [3], atol=0.1).count}
REFERENCE = {
    "tolerance": lambda T: reference.reference_tolerance_ess(T, 0.1),
    "entropy": reference.reference_entropy_ess,
    "values": reference.reference_singular_values,
}
PAPER = {"paper, tolerance": reference.paper_tolerance_ess, "paper, entropy": reference.paper_entropy_ess}
TOLERANCES = {
    "atol": lambda x: ek.tolerance_ess(torch.eye(3), atol=x.abs().flatten()),
    "rtol": lambda x: ek.randomized_ess(torch.eye(3), [1], rtol=x.abs().flatten()),
}
AGGREGATES = {
    "average_ess": aggregate.average_ess,
    "total_ess": aggregate.total_ess,
    "total_ess_per_index": aggregate.total_ess_per_index,
    "utilisation": lambda ess: aggregate.utilisation(ess, torch.eye(L + 1)),
    "saturated": lambda ess: aggregate.saturated(ess, torch.eye(L + 1)),
}
k = randn(1, L, 1, N)
rows, kernel, states = k.transpose(1, 2), randn(2, L), randn(2, L, N)
CONSTRUCTORS = {
    "dense: T": (operators.dense, (2, L, L)),
    "attention: q": (lambda q: operators.attention(q, rows), (1, 1, L, N)),
    "attention: k": (lambda k: operators.attention(rows, k), (1, 1, L, N)),
    "attention: attn_mask": (lambda mask: operators.attention(rows, rows, attn_mask=mask), (L, L)),
    "convolution: k": (operators.convolution, (2, L)),
    "gated_convolution: x0": (lambda x0: operators.gated_convolution(x0, kernel, kernel[None]), (1, 2, L)),
    "short_convolution: weight": (lambda weight: operators.short_convolution(weight, L), (2, 3)),
    "linear_attention: q": (lambda q: operators.linear_attention(q, k, normalize=True), (1, L, 1, N)),
    "gla: g": (lambda g: operators.gla(k, k, g), (1, L, 1, N)),
    "simple_gla: g": (lambda g: operators.simple_gla(k, k, g=g), (1, L, 1)),
    "retention: k": (lambda q: operators.retention(k, q), (1, L, 1, N)),
    "wla: g": (lambda g: operators.wla(k, k, g), (1, N)),
    "gla_s6: dt": (lambda dt: operators.gla_s6(k, k, dt, 10.0), (1, L, 1)),
    "ssd: dt": (lambda dt: operators.ssd(dt, -torch.ones(1), k, k), (1, L, 1)),
    "selective_scan: A": (lambda A: operators.selective_scan(torch.ones(1, 1, L), A, rows[0].mT, rows[0].mT), (1, N)),
    "recurrence: B": (lambda B: operators.recurrence(states, B, states, diagonal=True), (2, L, N)),
}
CALLS = {**COUNTS, **VALUES, **RANDOMIZED, **REFERENCE, **PAPER, **AGGREGATES, **TOLERANCES}


def counts_and_values():
    return [*COUNTS, *VALUES]


# --- layouts: refused by every entry point ----------------------------------------------------------------------------

LAYOUTS = {
    "sparse": (lambda x: x.to_sparse(), "to_dense()"),
    "csr": (lambda x: x.to_sparse_csr(), "to_dense()"),
    "nested": (lambda x: torch.nested.nested_tensor(list(x)), "padded"),
    "jagged": (lambda x: torch.nested.nested_tensor(list(x), layout=torch.jagged), "padded"),
    "mkldnn": (lambda x: x.float().to_mkldnn(), "to_dense()"),
    "masked": (lambda x: torch.masked.masked_tensor(x, x > 0), "plain tensor that it holds"),
}


@pytest.mark.parametrize("kind", LAYOUTS)
def test_layouts_are_refused(kind):
    make, what_to_do = LAYOUTS[kind]
    calls = {name: (CALLS[name], (2, L, L)) for name in CALLS if name not in TOLERANCES}
    calls["atol"] = (lambda x: ek.tolerance_ess(torch.eye(3), atol=x), (2, 3))
    calls["rtol"] = (lambda x: ek.randomized_ess(torch.eye(3), [1], rtol=x), (2, 3))
    calls["right"] = (lambda x: ek.small_spectra(randn(2, L, L), right=x), (2, L, L))
    for name, (call, shape) in (calls | CONSTRUCTORS).items():
        if kind == "csr" and len(shape) > 3:
            continue  # there is no such tensor
        with pytest.raises(
            TypeError, match=r"^(T|A|right|ess|atol|rtol|q|k|g|x0|weight|dt|B|attn_mask.*): expe"
        ) as caught:
            call(make(randn(*shape)))
        assert what_to_do in str(caught.value), name
        argument = name.partition(": ")[2]
        assert str(caught.value).startswith(argument), name


# --- transforms of torch.func -----------------------------------------------------------------------------------------

TRANSFORMS = {
    "vmap": lambda call, x: torch.vmap(call)(x[None]),
    "func.grad": lambda call, x: torch.func.grad(lambda x: call(x).double().sum())(x),
    "func.jvp": lambda call, x: torch.func.jvp(call, (x,), (x,)),
    "func.vjp": lambda call, x: torch.func.vjp(call, x),
    "func.jacrev": lambda call, x: torch.func.jacrev(call)(x),
}


# test_gradients_transforms.py has what they answer
BY_GRADIENT = ("func.grad", "func.vjp", "func.jacrev")


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("name", [name for name in CALLS if name not in AGGREGATES])
def test_metrics_refuse_transforms(name, transform):
    if name in SMOOTH and transform in BY_GRADIENT:
        pytest.skip("is differentiable")
    argument = r"^(op|op_or_T|A, right|T|atol|rtol): "
    with pytest.raises(NotImplementedError, match=argument + r".*(leading batch dimension|torch\.autograd)"):
        TRANSFORMS[transform](CALLS[name], randn(2, L, L))


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("name", AGGREGATES)
def test_aggregates_are_plain_arithmetic_under_transforms(name, transform):
    TRANSFORMS[transform](AGGREGATES[name], randn(2, L, L).abs())
    found = torch.vmap(AGGREGATES[name])(randn(3, 2, L, L).abs())
    assert_close(name, found, torch.stack([AGGREGATES[name](x) for x in randn(3, 2, L, L).abs()]))


@pytest.mark.parametrize("name", CONSTRUCTORS)
def test_operators_themselves_can_be_transformed(name):
    construct, shape = CONSTRUCTORS[name]
    x = -randn(3, *shape).abs()
    found = torch.vmap(lambda x: construct(x).dense())(x)
    assert_close(name, found, torch.stack([construct(one).dense() for one in x]))
    leaf = x[0].clone().requires_grad_()
    (wanted,) = torch.autograd.grad(construct(leaf).dense().sum(), leaf)
    assert_close(name, torch.func.grad(lambda x: construct(x).dense().sum())(x[0]), wanted)


# --- derivatives ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*VALUES, *PAPER])
def test_a_tangent_is_never_dropped(name):
    with forward.dual_level():
        x = forward.make_dual(randn(2, L, L), randn(2, L, L))
        with pytest.raises(NotImplementedError, match=r"^(op|A, right|T): .*forward mode.*unpack_dual\(x\)\.primal"):
            CALLS[name](x)
        CALLS[name](forward.unpack_dual(x).primal)


@pytest.mark.parametrize("name", [*COUNTS, *RANDOMIZED, "tolerance"])
def test_counts_have_no_tangent(name):
    with forward.dual_level():
        x = forward.make_dual(randn(2, L, L), randn(2, L, L))
        assert torch.equal(CALLS[name](x), CALLS[name](randn(2, L, L)))


def test_a_tangent_of_a_gate():
    g = -k.abs()
    with forward.dual_level(), pytest.raises(NotImplementedError, match="op: derivatives in forward mode"):
        ek.entropy_ess(operators.gla(k, k, forward.make_dual(g, g)))


@pytest.mark.parametrize("name", [*COUNTS, *RANDOMIZED, "singular_values", "small_spectra"])
def test_what_has_no_gradient_does_not_claim_one(name):
    assert not CALLS[name](randn(2, L, L).requires_grad_()).requires_grad


# --- tensors without numbers ------------------------------------------------------------------------------------------


@contextmanager
def fake_mode(**options):
    with FakeTensorMode(**options) as mode:
        yield mode


@pytest.mark.parametrize("name", counts_and_values())
def test_metrics_of_no_numbers_are_shapes(name):
    x = randn(2, L, L)
    wanted = CALLS[name](x)

    def same(found, device):
        assert (found.shape, found.dtype, found.device.type) == (wanted.shape, wanted.dtype, device)

    same(CALLS[name](x.to("meta")), "meta")
    mode = FakeTensorMode()
    fake = mode.from_tensor(x)
    same(CALLS[name](fake), "cpu")
    same(CALLS[name](mode.from_tensor(x.clone().requires_grad_())), "cpu")
    with mode:
        same(CALLS[name](fake), "cpu")
        with pytest.raises(ValueError, match=r"^(op|A, right): expected fake tensors inside of FakeTensorMode"):
            CALLS[name](x)
    with fake_mode(allow_non_fake_inputs=True):
        same(CALLS[name](x), "cpu")
    # the library was not tried on fake tensors, and found wanting
    assert torch.equal(CALLS[name](x), wanted)


@pytest.mark.parametrize("name", [*RANDOMIZED, *REFERENCE, *PAPER, *TOLERANCES])
def test_what_needs_numbers_says_so(name):
    x = randn(2, L, L)
    for odd in (x.to("meta"), FakeTensorMode().from_tensor(x)):
        with pytest.raises(NotImplementedError, match=r"^(op|op_or_T|T|atol|rtol): expected tensors with numbers"):
            CALLS[name](odd)


@pytest.mark.parametrize("name", AGGREGATES)
def test_aggregates_of_no_numbers_are_shapes(name):
    assert AGGREGATES[name](randn(2, L, L).to("meta")).shape == AGGREGATES[name](randn(2, L, L)).shape
    with fake_mode() as mode:
        assert AGGREGATES[name](mode.from_tensor(randn(2, L, L))).device.type == "cpu"


@pytest.mark.parametrize("name", CONSTRUCTORS)
def test_operators_of_no_numbers(name):
    construct, shape = CONSTRUCTORS[name]
    with fake_mode(allow_non_fake_inputs=True) as mode:
        op = construct(mode.from_tensor(randn(*shape)))
        assert op.dense().shape == (*op.batch_shape, L, L)
        assert ek.tolerance_ess(op).shape == (*op.batch_shape, L - 1)
        assert ek.entropy_ess(op).shape == (*op.batch_shape, L - 1)


@pytest.mark.parametrize("name", counts_and_values())
def test_a_recorded_call_is_recorded_as_a_call(name):
    """Not with its numbers as constants."""
    graph = make_fx(lambda x: CALLS[name](x))(randn(2, L, L))
    other = randn(2, L, L) + 1
    assert torch.equal(graph(other), CALLS[name](other))
    # the sum of the singular values is found with their entropy
    op = {"nuclear_norm": "entropy_ess"}.get(name, name)
    assert any(f"ess_kernels.{op}" in str(node.target) for node in graph.graph.nodes)


class Doubled(Tiled):
    """An operator that is none of this package's."""

    def __init__(self, T):
        super().__init__(T.shape[-1], (), None, [T])
        self.T = T

    def rows(self, heads, start, stop):
        return 2 * self.T[None, start:stop, :stop].tril(start)

    def finite(self, heads):
        return torch.ones(1, dtype=torch.bool)


def test_somebody_elses_operator_needs_numbers():
    assert_close("entropy", ek.entropy_ess(Doubled(randn(L, L))), ek.entropy_ess(randn(L, L)), rtol=1e-6)
    with pytest.raises(NotImplementedError, match="op: a Doubled needs ordinary tensors"):
        ek.entropy_ess(Doubled(randn(L, L).to("meta")))


# --- tensors whose memory is not what they say ------------------------------------------------------------------------


def negated(x):
    """A view whose sign is pending: kernels that read its memory would see `-x`."""
    view = torch.complex(x, -x).conj().imag
    assert view.is_neg() and torch.equal(view, x)
    return view


class Named(torch.Tensor):
    """Adds nothing that matters."""


EQUAL = {
    "parameter": torch.nn.Parameter,
    "subclass": lambda x: x.as_subclass(Named),
    "negated": negated,
    "expanded": lambda x: x[..., None].expand(*x.shape, 2)[..., 0],
    "reversed": lambda x: torch.flip(x, [-1])[..., list(range(x.shape[-1] - 1, -1, -1))],
}


@pytest.mark.parametrize("kind", EQUAL)
@pytest.mark.parametrize("name", counts_and_values())
def test_equal_tensors_have_equal_answers(name, kind):
    x = randn(2, L, L)
    with torch.no_grad():
        assert torch.equal(CALLS[name](EQUAL[kind](x)), CALLS[name](x))


@pytest.mark.parametrize("kind", EQUAL)
@pytest.mark.parametrize("name", CONSTRUCTORS)
def test_equal_arguments_make_equal_operators(name, kind):
    construct, shape = CONSTRUCTORS[name]
    x = -randn(*shape).abs()
    with torch.no_grad():
        odd, plain = construct(EQUAL[kind](x)), construct(x)
        assert torch.equal(ek.tolerance_ess(odd, 0.1), ek.tolerance_ess(plain, 0.1))
        # an ordinary copy loses that a gate is shared, for which there are kernels of their own
        assert_close("entropy", ek.entropy_ess(odd), ek.entropy_ess(plain), rtol=1e-6)


def test_a_negated_tensor_keeps_its_gradient():
    x = randn(L, L)
    leaf = torch.complex(x, -x).requires_grad_()
    ek.entropy_ess(leaf.conj().imag).sum().backward()
    plain = x.clone().requires_grad_()
    ek.entropy_ess(plain).sum().backward()
    assert_close("gradient", leaf.grad.imag, -plain.grad, rtol=1e-8)


@pytest.mark.parametrize("name", counts_and_values())
def test_zeros_without_memory(name):
    zeros = torch._efficientzerotensor((2, L, L), dtype=torch.float64)
    assert torch.equal(CALLS[name](zeros), CALLS[name](torch.zeros(2, L, L, dtype=torch.float64)))


def test_tensors_of_inference_mode():
    with torch.inference_mode():
        x = randn(2, L, L) + 0
        inside = [CALLS[name](x) for name in counts_and_values()]
    for name, found in zip(counts_and_values(), inside, strict=True):
        assert torch.equal(CALLS[name](x), found)


# --- numbers that are no floats, and integers of more than 64 bits ----------------------------------------------------

HUGE = 10**400
WIDE = 2**63
T, q = torch.eye(4), torch.ones(1, 4, 1, 2)


@pytest.mark.parametrize(
    ("argument", "call"),
    [
        ("atol", lambda: ek.tolerance_ess(T, HUGE)),
        ("atol", lambda: ek.tolerance_ess(T, [0.1, HUGE])),
        ("rtol", lambda: ek.tolerance_ess(T, rtol=HUGE)),
        ("atol", lambda: ek.small_spectra(T, atol=HUGE)),
        ("atol", lambda: ek.randomized_ess(T, [1], atol=HUGE)),
        ("atol", lambda: reference.reference_tolerance_ess(T, HUGE)),
        ("positions", lambda: ek.tolerance_ess(T, positions=[HUGE])),
        ("positions", lambda: ek.singular_values(T, [-HUGE])),
        ("k", lambda: ek.singular_values(T, [1], k=WIDE)),
        ("rank", lambda: ek.randomized_ess(T, [1], rank=WIDE)),
        ("seed", lambda: ek.randomized_ess(T, [1], seed=WIDE)),
        ("power_iterations", lambda: ek.randomized_ess(T, [1], power_iterations=WIDE)),
        ("scale", lambda: operators.gla(q, q, -q, scale=HUGE)),
        ("alpha", lambda: operators.gla_s6(q, q, q, HUGE)),
        ("softcap", lambda: operators.attention(q, q, softcap=HUGE)),
        ("window_size", lambda: operators.attention(q, q, window_size=WIDE)),
        ("dt_limit", lambda: operators.ssd(q[..., 0], -torch.ones(1), q, q, dt_limit=(0, HUGE))),
        ("length", lambda: operators.short_convolution(T, WIDE)),
        ("length", lambda: operators.recurrence(T, T, T, diagonal=True, length=WIDE)),
        ("fraction", lambda: aggregate.saturated(torch.ones(3), T, fraction=HUGE)),
        ("channels", lambda: aggregate.total_ess(torch.ones(1, 3), channels=WIDE)),
    ],
)
def test_numbers_out_of_range_are_refused_by_name(argument, call):
    with pytest.raises((TypeError, ValueError), match=f"^{argument}: expected"):
        call()


def test_the_largest_numbers_in_range():
    assert ek.tolerance_ess(T, 10**308).tolist() == ek.tolerance_ess(T, float("inf")).tolist() == [0, 0, 0]
    assert torch.equal(operators.attention(q, q, window_size=WIDE - 1).dense(), operators.attention(q, q).dense())
