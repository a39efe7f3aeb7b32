"""The public calls: arguments, shapes, conventions, bad data, and what they promise about the caller's tensors."""

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import logsigmoid

import ess_kernels as ek
from ess_kernels import operators
from ess_kernels.reference import reference_entropy_ess, reference_singular_values, reference_tolerance_ess
from ess_kernels.testing import assert_close
from ess_kernels.testing.cases import build, corner, names, orthogonal, powers, rand, randn

BACKENDS = ["torch", "reference"]


@pytest.fixture
def op():
    torch.manual_seed(0)
    return operators.gla(randn(2, 19, 3, 4), randn(2, 19, 3, 4), logsigmoid(randn(2, 19, 3, 4)))


def no_head():
    return operators.gla(*(torch.zeros(0, 9, 3, 4) for _ in range(3)))


# --- positions and tolerances -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "positions",
    [
        [7, 2, 7, 18],
        (7, 2, 7, 18),
        torch.tensor([7, 2, 7, 18]),
        torch.tensor([7, 2, 7, 18]).int(),
        np.array([7, 2, 7, 18]),
    ],
)
def test_positions_in_any_order_and_repeated(op, backend, positions):
    index = torch.tensor([6, 1, 6, 17])
    everywhere = ek.tolerance_ess(op, 0.3, backend=backend)
    assert everywhere.shape == (2, 3, 18)
    assert torch.equal(ek.tolerance_ess(op, 0.3, positions=positions, backend=backend), everywhere[..., index])
    entropy = ek.entropy_ess(op, positions, backend=backend)
    assert_close("entropy", entropy, ek.entropy_ess(op, backend=backend)[..., index], rtol=2e-5)
    assert torch.equal(entropy[..., 0], entropy[..., 2])
    values = ek.singular_values(op, positions, backend=backend)
    assert values.shape == (2, 3, 4, 4) and torch.equal(values[..., 0, :], values[..., 2, :])
    assert bool((values[..., 3, 1:] == 0).all()) and bool((values[..., 1, 2:] == 0).all())


@pytest.mark.parametrize("backend", ["auto", *BACKENDS])
@pytest.mark.parametrize(
    ("positions", "first"),
    [
        ([3, 0, 19], "0"),
        ([19, 0], "19"),
        ([1, -2], "-2"),
        ([2, True], "True"),
        ([False], "False"),
        (range(5, 25), "19"),
    ],
)
def test_a_wrong_position_is_named(op, backend, positions, first):
    for call in (
        lambda: ek.tolerance_ess(op, positions=positions, backend=backend),
        lambda: ek.entropy_ess(op, positions, backend=backend),
        lambda: ek.singular_values(op, positions, backend=backend),
    ):
        with pytest.raises(ValueError, match=rf"positions.*1\.\.18.*got {first}$"):
            call()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("length", [0, 1])
def test_nothing_to_measure(backend, length):
    q = torch.zeros(2, length, 3, 4)
    for op in (operators.gla(q, q, q), torch.zeros(2, 3, length, length)):
        counts, certificate = ek.tolerance_ess(op, certificate=True, backend=backend)
        assert counts.shape == (2, 3, 0) and counts.dtype == torch.int64
        assert all(x.shape == (2, 3, 0) for x in certificate)
        assert ek.tolerance_ess(op, [1.0, 2.0], backend=backend).shape == (2, 2, 3, 0)
        assert ek.entropy_ess(op, backend=backend).shape == (2, 3, 0)
        assert ek.singular_values(op, [], backend=backend).shape == (2, 3, 0, 0)
        assert ek.singular_values(op, [], k=3, backend=backend).shape == (2, 3, 0, 3)
        with pytest.raises(ValueError, match="positions"):
            ek.entropy_ess(op, [1], backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_positions(op, backend):
    assert ek.tolerance_ess(op, 1.0, positions=[], backend=backend).shape == (2, 3, 0)
    assert ek.entropy_ess(op, torch.zeros(0, dtype=torch.int64), backend=backend).shape == (2, 3, 0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_tolerance_defaults(op, backend):
    values = reference_singular_values(op)
    count = lambda threshold: (values > threshold).sum(-1)  # noqa: E731

    def found(*args, **kwargs):
        return ek.tolerance_ess(op, *args, **kwargs, backend=backend)

    assert torch.equal(found(), count(1e-3))
    assert torch.equal(found(0.5), count(0.5))
    assert torch.equal(found(rtol=0.2), count(0.2 * values[..., :1]))
    assert torch.equal(found(0.5, 0.2), count((0.2 * values[..., :1]).clamp_min(0.5)))
    pairs = found([0.5, 0.0, 2.0], [0.0, 0.2, 0.1])
    assert torch.equal(pairs[0], found(0.5)) and torch.equal(pairs[1], found(rtol=0.2))
    assert torch.equal(pairs[2], found(2.0, 0.1))
    assert torch.equal(found([0.5, 2.0], 0.2), torch.stack([found(0.5, 0.2), found(2.0, 0.2)]))
    assert torch.equal(found(0.5, torch.tensor([0.2])), found(0.5, 0.2)[None])


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_list_adds_an_axis(op, backend):
    for tolerances in ([0.5], (0.5,), torch.tensor([0.5]), np.array([0.5])):
        assert ek.tolerance_ess(op, tolerances, backend=backend).shape == (1, 2, 3, 18)
    for tolerance in (0.5, 1, torch.tensor(0.5), np.float64(0.5)):
        assert ek.tolerance_ess(op, tolerance, backend=backend).shape == (2, 3, 18)
    assert ek.tolerance_ess(op, [0.5, 1, 2, 3], positions=[4, 5], backend=backend).shape == (4, 2, 3, 2)
    assert ek.tolerance_ess(op, [], backend=backend).shape == (0, 2, 3, 18)


@pytest.mark.parametrize("backend", ["auto", *BACKENDS])
@pytest.mark.parametrize(
    ("atol", "rtol", "error", "words"),
    [
        (-1e-9, None, ValueError, ["atol", "-1e-09"]),
        (None, -0.5, ValueError, ["rtol", "-0.5"]),
        (math.nan, None, ValueError, ["atol", "nan"]),
        ([0.1, math.nan], None, ValueError, ["atol", "nan"]),
        ([0.1, 0.2], [0.1, 0.2, 0.3], ValueError, ["atol", "rtol", "2", "3"]),
        (torch.zeros(2, 2), None, ValueError, ["atol", "[2, 2]"]),
        ("0.1", None, TypeError, ["atol", "0.1"]),
        (True, None, TypeError, ["atol", "True"]),
    ],
)
def test_wrong_tolerances(op, backend, atol, rtol, error, words):
    with pytest.raises(error) as caught:
        ek.tolerance_ess(op, atol, rtol, backend=backend)
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize("backend", BACKENDS)
def test_zero_is_a_tolerance_and_zero_operators_have_no_rank(backend):
    counts, certificate = ek.tolerance_ess(torch.eye(6), [0.0, 1e-3], certificate=True, backend=backend)
    assert bool((counts == 0).all()) and not bool(certificate.unresolved.any())
    assert bool((ek.entropy_ess(torch.eye(6), backend=backend) == 0).all())
    T = torch.zeros(6, 6)
    T[4, 1] = 1e-30
    assert ek.tolerance_ess(T, 0.0, backend=backend).tolist() == [0, 1, 1, 1, 0]
    assert ek.tolerance_ess(T, math.inf, backend=backend).tolist() == [0] * 5
    entropy = ek.entropy_ess(T, backend=backend)
    assert_close("entropy", entropy, torch.tensor([0.0, 1.0, 1.0, 1.0, 0.0]).double(), rtol=1e-5)
    assert entropy[0] == 0 and entropy[4] == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_equal_to_the_tolerance_does_not_count(backend):
    """A shift by one: all singular values are exactly 1."""
    T = torch.diag(torch.full((7,), 0.5), -1)
    assert ek.tolerance_ess(T, 0.5 - 1e-9, backend=backend).tolist() == [1] * 7
    assert ek.tolerance_ess(T, 0.5, backend=backend).tolist() == [0] * 7
    assert ek.tolerance_ess(T, rtol=1.0, backend=backend).tolist() == [0] * 7


# --- shapes and types -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("batch", [(), (3,), (2, 3), (2, 1, 3), (0,), (2, 0)])
def test_shapes(backend, batch):
    torch.manual_seed(1)
    T = torch.randn(*batch, 9, 9)
    counts, certificate = ek.tolerance_ess(T, [0.1, 1.0], certificate=True, backend=backend)
    assert counts.shape == (2, *batch, 8) and counts.dtype == torch.int64
    assert isinstance(certificate, ek.Certificate) and certificate._fields == ("width", "redone", "unresolved")
    assert [x.dtype for x in certificate] == [torch.float64, torch.bool, torch.bool]
    assert all(x.shape == counts.shape for x in certificate)
    assert all(x.shape == (*batch, 8) for x in ek.tolerance_ess(T, certificate=True, backend=backend)[1])
    entropy = ek.entropy_ess(T, backend=backend)
    assert entropy.shape == (*batch, 8) and entropy.dtype == torch.float64
    values = ek.singular_values(T, [4, 1, 8], backend=backend)
    assert values.shape == (*batch, 3, 4) and values.dtype == torch.float64
    assert torch.equal(ek.tolerance_ess(operators.dense(T), [0.1, 1.0], backend=backend), counts)


@pytest.mark.parametrize("backend", BACKENDS)
def test_batch_of_nothing(backend):
    op = no_head()
    counts, certificate = ek.tolerance_ess(op, [0.1], certificate=True, backend=backend)
    assert counts.shape == (1, 0, 3, 8) and certificate.width.shape == (1, 0, 3, 8)
    assert ek.entropy_ess(op, backend=backend).shape == (0, 3, 8)
    assert ek.singular_values(op, [3, 4], backend=backend).shape == (0, 3, 2, 4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_number_of_singular_values(op, backend):
    full = reference_singular_values(op, [9, 2])
    for k in (0, 1, 3, 4, 12, 30):
        values = ek.singular_values(op, [9, 2], k, backend=backend)
        assert values.shape == (2, 3, 2, k)
        expected = torch.nn.functional.pad(full[..., :4], (0, 30))[..., :k]
        assert_close("values", values, expected, rtol=1e-12, atol=1e-13)
    for k, error in ((-1, ValueError), (1.0, TypeError), (True, TypeError)):
        with pytest.raises(error, match="k: expected"):
            ek.singular_values(op, [1], k, backend=backend)


def test_singular_values_want_positions(op):
    with pytest.raises(TypeError):
        ek.singular_values(op)


@pytest.mark.parametrize("subject", ["T", None, 3.0, [[1.0]], np.eye(3)])
def test_not_an_operator(subject):
    for call in (ek.tolerance_ess, ek.entropy_ess, lambda x: ek.singular_values(x, [1])):
        with pytest.raises(TypeError, match="op: expected"):
            call(subject)
    with pytest.raises((ValueError, TypeError)):
        ek.tolerance_ess(torch.zeros(3, 4))
    with pytest.raises(TypeError):
        ek.tolerance_ess(torch.zeros(3, 3, dtype=torch.int64))


# --- backends ---------------------------------------------------------------------------------------------------------


def test_backend_names(op):
    for call in (
        lambda name: ek.tolerance_ess(op, backend=name),
        lambda name: ek.entropy_ess(op, backend=name),
        lambda name: ek.singular_values(op, [3], backend=name),
        lambda name: ek.small_spectra(torch.zeros(2, 2), backend=name),
    ):
        for name in ("auto", "torch", "reference"):
            call(name)
        with pytest.raises(ValueError, match=r"backend: expected one of .*'torch'.*got 'cuda'"):
            call("cuda")
        with pytest.raises((ValueError, TypeError), match="backend"):
            call(None)
        try:
            call("native")
        except RuntimeError as error:
            assert "native" in str(error)


def test_a_wrong_backend_is_refused_even_where_there_is_nothing_to_do():
    with pytest.raises(ValueError, match="backend"):
        ek.tolerance_ess(no_head(), backend="none")


# --- inputs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("value", [math.nan, math.inf, 1e300])
def test_what_lies_above_or_on_the_diagonal_is_not_read(backend, value):
    torch.manual_seed(2)
    T = randn(2, 11, 11)
    spoilt = torch.where(torch.ones(11, 11).bool().triu(), value, T)
    assert torch.equal(ek.tolerance_ess(spoilt, 0.4, backend=backend), ek.tolerance_ess(T, 0.4, backend=backend))
    assert torch.equal(ek.entropy_ess(spoilt, backend=backend), ek.entropy_ess(T, backend=backend))
    for x, y in ((spoilt, T),):
        assert torch.equal(
            ek.singular_values(x, [5, 3], backend=backend), ek.singular_values(y, [5, 3], backend=backend)
        )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_low_precision_is_upcast_before_anything_else(backend, dtype):
    torch.manual_seed(3)
    q, k, g = (x.to(dtype) for x in (randn(1, 19, 2, 4), randn(1, 19, 2, 4), -rand(1, 19, 2, 4)))
    low, high = operators.gla(q, k, g), operators.gla(q.double(), k.double(), g.double())
    assert torch.equal(ek.tolerance_ess(low, 0.1, backend=backend), ek.tolerance_ess(high, 0.1, backend=backend))
    assert torch.equal(ek.entropy_ess(low, backend=backend), ek.entropy_ess(high, backend=backend))
    T = randn(2, 9, 9).to(dtype)
    assert torch.equal(ek.entropy_ess(T, backend=backend), ek.entropy_ess(T.double(), backend=backend))


@pytest.mark.parametrize("backend", BACKENDS)
def test_inputs_in_any_layout_and_never_modified(backend):
    torch.manual_seed(4)
    tensors = [randn(2, 4, 3, 19).permute(0, 3, 2, 1) for _ in range(3)]
    tensors[2] = -tensors[2].abs()
    tensors[2][0, 5] = -math.inf
    copies = [x.clone(memory_format=torch.contiguous_format) for x in tensors]
    found, wanted = operators.gla(*tensors), operators.gla(*copies)
    T = randn(3, 11, 11).mT
    T_copy = T.clone(memory_format=torch.contiguous_format)
    for one, other in ((found, wanted), (T, T_copy)):
        assert torch.equal(
            ek.tolerance_ess(one, [1e-3, 1e-9, 0.0], backend=backend),
            ek.tolerance_ess(other, [1e-3, 1e-9, 0.0], backend=backend),
        )
        assert_close("entropy", ek.entropy_ess(one, backend=backend), ek.entropy_ess(other, backend=backend), rtol=1e-9)
        ek.singular_values(one, [3, 7], backend=backend)
    assert all(torch.equal(x, y) for x, y in zip([*tensors, T], [*copies, T_copy]))


@pytest.mark.parametrize(
    "name", [name for name in names("attention", "ssd", "selective", "rec", "gated") if "length" not in name]
)
def test_no_family_has_its_inputs_modified(name):
    op = build(name)
    before = [x.clone() for x in op.inputs]
    ek.tolerance_ess(op, [1e-3, 1e-9])
    ek.entropy_ess(op)
    ek.singular_values(op, [op.length // 2])
    assert all(torch.equal(x, y) for x, y in zip(op.inputs, before))


@pytest.mark.parametrize("backend", BACKENDS)
def test_counts_of_what_requires_grad(op, backend):
    tensors = [x.clone().requires_grad_() for x in op.inputs]
    tracked = operators.gla(*tensors)
    counts = ek.tolerance_ess(tracked, 0.3, backend=backend)
    assert torch.equal(counts, ek.tolerance_ess(op, 0.3, backend=backend)) and not counts.requires_grad
    values = ek.singular_values(tracked, [9], backend=backend)
    assert torch.equal(values, ek.singular_values(op, [9], backend=backend)) and not values.requires_grad
    if backend == "torch":
        with torch.no_grad():
            entropy = ek.entropy_ess(tracked, backend=backend)
        assert not entropy.requires_grad and torch.equal(entropy, ek.entropy_ess(op, backend=backend))


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_random_numbers_are_drawn(op, backend):
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    ek.tolerance_ess(op, [0.1, 1e-9], backend=backend)
    ek.entropy_ess(op, backend=backend)
    ek.entropy_ess(op.dense(), backend=backend)
    assert torch.equal(torch.rand(3), wanted)


def test_results_lie_on_the_inputs_device(op):
    counts, certificate = ek.tolerance_ess(op, certificate=True)
    everything = [counts, *certificate, ek.entropy_ess(op), ek.singular_values(op, [2])]
    assert all(x.device == op.device for x in everything)


@pytest.mark.gpu
def test_results_on_a_gpu(op):
    for here in (op, operators.attention(randn(2, 2, 40, 8), randn(2, 2, 40, 8))):
        there = type(here).__new__(type(here))
        there.__dict__ = {k: v.cuda() if isinstance(v, torch.Tensor) else v for k, v in here.__dict__.items()}
        there.inputs = tuple(x.cuda() for x in here.inputs)
        counts, certificate = ek.tolerance_ess(there, [0.3, 1e-9], certificate=True)
        assert all(x.is_cuda for x in (counts, *certificate))
        assert torch.equal(counts.cpu(), ek.tolerance_ess(here, [0.3, 1e-9]))
        entropy = ek.entropy_ess(there)
        assert entropy.is_cuda
        assert_close("entropy", entropy.cpu(), ek.entropy_ess(here), rtol=1e-5)


# --- bad data ---------------------------------------------------------------------------------------------------------


def three_metrics(op, backend, positions=None):
    everywhere = range(1, op.shape[-1] if isinstance(op, torch.Tensor) else op.length)
    counts, certificate = ek.tolerance_ess(
        op, [1e-3, 0.3, 1e-9, 0.0], [0.0, 0.0, 0.0, 1e-5], positions, backend, certificate=True
    )
    return [
        counts,
        *certificate,
        ek.entropy_ess(op, positions, backend),
        ek.singular_values(op, everywhere, None, backend),
    ]


def check_marked(spoilt, clean, bad, backend):
    """Heads in `bad` (bool, batch shape) are marked everywhere, the others as if nothing had happened."""
    found, wanted = three_metrics(spoilt, backend), three_metrics(clean, backend)
    counts, _, _, unresolved, entropy, values = found
    assert bool((counts[:, bad] == -1).all()) and bool(unresolved[:, bad].all())
    assert bool(entropy[bad].isnan().all()) and bool(values[bad].isnan().all())
    for name, x, y in zip(("counts", "width", "redone", "unresolved"), found, wanted):
        assert torch.equal(x[:, ~bad], y[:, ~bad]), name
    assert torch.equal(entropy[~bad], wanted[4][~bad]), "entropy"
    assert torch.equal(values[~bad], wanted[5][~bad]), "singular values"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("family", ["gla", "attention", "dense", "recurrence", "convolution"])
def test_bad_data_marks_one_head_and_leaves_the_others_bit_identical(family, value, backend):
    torch.manual_seed(6)
    bad = torch.zeros(2, 3).bool()
    bad[1, 2] = True
    if family == "gla":
        tensors, at = [randn(2, 37, 3, 5), randn(2, 37, 3, 5), -rand(2, 37, 3, 5)], (1, 36, 2, 0)
        make = lambda q: operators.gla(q, *tensors[1:])  # noqa: E731
    elif family == "attention":
        tensors, at = [randn(2, 3, 37, 5), randn(2, 3, 37, 5)], (1, 2, 0, 0)
        make = lambda q: operators.attention(q, tensors[1])  # noqa: E731
    elif family == "dense":
        tensors, at = [randn(2, 3, 37, 37)], (1, 2, 36, 0)
        make = operators.dense
    elif family == "recurrence":
        tensors, at = [randn(2, 3, 37, 4, 4) / 4, randn(2, 3, 37, 4), randn(2, 3, 37, 4)], (1, 2, 0, 3, 3)
        make = lambda A: operators.recurrence(A, *tensors[1:], diagonal=False)  # noqa: E731
    else:
        tensors, at = [randn(2, 3, 37), randn(3, 37), randn(2, 3, 37)], (1, 2, 5)
        make = lambda x: operators.gated_convolution(x, *tensors[1:])  # noqa: E731
    spoilt = tensors[0].clone()
    spoilt[at] = value
    check_marked(make(spoilt), make(tensors[0]), bad, backend)
    for positions in ([20], [3, 30]):
        counts = ek.tolerance_ess(make(spoilt), 0.3, positions=positions, backend=backend)
        assert bool((counts[bad] == -1).all())
        assert torch.equal(counts[~bad], ek.tolerance_ess(make(tensors[0]), 0.3, None, positions, backend)[~bad])
        entropy = ek.entropy_ess(make(spoilt), positions, backend)
        assert bool(entropy[bad].isnan().all())
        assert torch.equal(entropy[~bad], ek.entropy_ess(make(tensors[0]), positions, backend)[~bad])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("fall", [8, 16, 60])
def test_a_bad_head_changes_nothing_for_heads_that_need_more_work(backend, fall):
    """Rows that fall far below the largest: decisions about how to go on must not look at other heads."""
    torch.manual_seed(7)
    T = randn(2, 50, 50) * powers(0, -fall, 50)[:, None]
    spoilt = T.clone()
    spoilt[1, 30, 3] = math.nan
    check_marked(spoilt, T, torch.tensor([False, True]), backend)
    q, k, g = randn(1, 50, 2, 4) * powers(0, -fall, 50)[None, :, None, None], randn(1, 50, 2, 4), -rand(1, 50, 2, 4)
    spoilt_q = q.clone()
    spoilt_q[0, 3, 1] = math.inf
    check_marked(operators.gla(spoilt_q, k, g), operators.gla(q, k, g), torch.tensor([[False, True]]), backend)


@pytest.mark.parametrize("fall", [0, 8, 16, 60])
def test_a_head_alone_is_the_head_in_a_batch(fall):
    """Certificates and counts exactly, entropy to rounding."""
    torch.manual_seed(8)
    T = randn(3, 50, 50) * powers(0, -fall, 50)[:, None]
    whole = ek.tolerance_ess(T, [1e-3, 1e-9], certificate=True, backend="torch")
    for head in range(3):
        alone = ek.tolerance_ess(T[head], [1e-3, 1e-9], certificate=True, backend="torch")
        assert torch.equal(alone[0], whole[0][:, head])
    entropy = ek.entropy_ess(T, backend="torch")
    alone = torch.stack([ek.entropy_ess(head, backend="torch") for head in T])
    assert_close("entropy", entropy, alone, rtol=1e-10)


@pytest.mark.parametrize("backend", BACKENDS)
def test_shared_values_mark_every_head_that_reads_them(backend):
    torch.manual_seed(9)
    k = randn(1, 1, 20, 4)
    k[0, 0, 7, 1] = math.nan
    assert bool((ek.tolerance_ess(operators.attention(randn(1, 4, 20, 4), k), backend=backend) == -1).all())


@pytest.mark.parametrize("backend", BACKENDS)
def test_overflow_is_bad_data(backend):
    """Finite inputs whose operator is not."""
    torch.manual_seed(10)
    q = randn(1, 30, 2, 4)
    big = q.clone()
    big[:, :, 1] *= 1e200
    op = operators.gla(big, big, -rand(1, 30, 2, 4))
    counts, entropy = ek.tolerance_ess(op, backend=backend), ek.entropy_ess(op, backend=backend)
    assert bool((counts[:, 1] == -1).all()) and bool(entropy[:, 1].isnan().all())
    assert bool((counts[:, 0] >= 0).all()) and bool((entropy[:, 0] > 0).all())
    grows = operators.gla(q, q, torch.full_like(q, 400.0))
    for positions in (None, [15]):
        assert bool((ek.tolerance_ess(grows, positions=positions, backend=backend) == -1).all())
        assert bool(ek.entropy_ess(grows, positions, backend=backend).isnan().all())
    assert bool(ek.singular_values(grows, [15], backend=backend).isnan().all())


@pytest.mark.parametrize("start", [1.0, 1e-120, 1e120])
@pytest.mark.parametrize("growth", [10.0, 1e4, 1e6, 1e8])
def test_backends_agree_about_what_overflows(growth, start):
    """`T` grows to `start growth^29`; where that is a number, so is the answer."""
    torch.manual_seed(11)
    A = torch.full((1, 31, 3), growth, dtype=torch.float64)
    op = operators.recurrence(A, start * randn(1, 31, 3), randn(1, 31, 3), diagonal=True)
    bad = not bool(op.dense().isfinite().all())
    for backend in BACKENDS:
        counts = ek.tolerance_ess(op, 1e-3, backend=backend)
        assert bool(((counts == -1) == bad).all()), f"{backend}: {counts.tolist()}"
        assert bool((ek.entropy_ess(op, backend=backend).isnan() == bad).all()), backend


@pytest.mark.parametrize("backend", BACKENDS)
def test_bad_data_where_gradients_are_wanted(backend):
    if backend == "reference":
        pytest.skip("has no backward")
    torch.manual_seed(12)
    q = randn(1, 15, 2, 3)
    q[0, 4, 1] = math.nan
    entropy = ek.entropy_ess(operators.linear_attention(q.requires_grad_(), randn(1, 15, 2, 3)))
    assert bool(entropy[0, 1].isnan().all()) and bool((entropy[0, 0] >= 1).all())
    entropy[0, 0].sum().backward()
    assert bool(q.grad[0, :, 0].isfinite().all())


# --- small spectra ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["auto", *BACKENDS])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (2, 4, 6, 6), (7, 1, 1), (0, 4, 4), (2, 300, 5)])
def test_small_spectra(backend, dtype, shape):
    torch.manual_seed(13)
    A = torch.randn(*shape, dtype=dtype)
    found = ek.small_spectra(A, atol=[0.5, 1.5], entropy=True, backend=backend)
    wanted = torch.linalg.svdvals(A)
    assert isinstance(found, ek.SmallSpectra) and found._fields == ("values", "counts", "entropy")
    assert found.values.dtype == dtype and found.values.shape == wanted.shape
    eps = torch.finfo(dtype).eps
    assert_close("values", found.values, wanted, rtol=20 * eps, atol=20 * eps)
    assert found.counts.dtype == torch.int64 and found.counts.shape == (2, *shape[:-2])
    assert torch.equal(found.counts, torch.stack([(wanted > t).sum(-1) for t in (0.5, 1.5)]))
    p = wanted.double() / wanted.double().sum(-1, keepdim=True)
    assert found.entropy.shape == shape[:-2]
    assert_close("entropy", found.entropy.double(), torch.special.entr(p).sum(-1).exp(), rtol=100 * eps)
    one = ek.small_spectra(A, atol=0.5, backend=backend)
    assert torch.equal(one.counts, found.counts[0]) and one.entropy is None
    assert ek.small_spectra(A, backend=backend).counts is None
    assert ek.small_spectra(A, atol=[0.5], backend=backend).counts.shape == (1, *shape[:-2])


@pytest.mark.parametrize("backend", ["auto", *BACKENDS])
def test_small_spectra_of_a_product(backend):
    torch.manual_seed(14)
    A, right = randn(3, 6, 4), randn(3, 6, 4)
    found = ek.small_spectra(A, right=right, entropy=True, backend=backend)
    assert found.values.shape == (3, 6)
    assert_close("values", found.values, torch.linalg.svdvals(A @ right.mT), rtol=1e-12, atol=1e-13)
    # not through squares: half of the digits would be gone
    graded = orthogonal(8) * powers(0, -12, 8)
    values = ek.small_spectra(graded[None], right=orthogonal(8)[None], backend=backend).values
    assert_close("graded", values[0], powers(0, -12, 8), rtol=1e-3, atol=1e-15)


@pytest.mark.parametrize("backend", ["auto", *BACKENDS])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_bad_small_matrices(backend, value):
    torch.manual_seed(15)
    A, right = randn(4, 5, 3), randn(4, 5, 3)
    clean = ek.small_spectra(A, right=right, atol=[0.1, 1.0], entropy=True, backend=backend)
    spoilt, other = A.clone(), right.clone()
    spoilt[1, 2, 2], other[3, 0, 0] = value, value
    found = ek.small_spectra(spoilt, right=other, atol=[0.1, 1.0], entropy=True, backend=backend)
    assert bool(found.values[[1, 3]].isnan().all()) and bool(found.entropy[[1, 3]].isnan().all())
    assert bool((found.counts[:, [1, 3]] == -1).all())
    assert torch.equal(found.values[[0, 2]], clean.values[[0, 2]])
    assert torch.equal(found.entropy[[0, 2]], clean.entropy[[0, 2]])
    assert torch.equal(found.counts[:, [0, 2]], clean.counts[:, [0, 2]])


@pytest.mark.parametrize("backend", ["auto", *BACKENDS])
def test_a_small_product_that_overflows_is_bad(backend):
    A = torch.full((2, 3, 3), 1e200, dtype=torch.float64)
    A[0] = 1.0
    found = ek.small_spectra(A, right=A, atol=0.1, entropy=True, backend=backend)
    assert found.counts.tolist() == [1, -1]
    assert bool(found.values[1].isnan().all()) and bool(found.entropy[1].isnan())


def test_small_spectra_of_zero():
    found = ek.small_spectra(torch.zeros(2, 3, 3), atol=0.0, entropy=True)
    assert bool((found.values == 0).all()) and found.counts.tolist() == [0, 0] and found.entropy.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"A": torch.zeros(3)}, ValueError, ["A", "[..., m, n]", "(3,)"]),
        ({"A": torch.zeros(257, 257)}, ValueError, ["A", "256", "257"]),
        ({"A": torch.zeros(3, 3).half()}, TypeError, ["A", "float16"]),
        ({"A": torch.zeros(3, 3).long()}, TypeError, ["A", "int64"]),
        ({"A": [[1.0]]}, TypeError, ["A", "list"]),
        ({"A": torch.zeros(3, 3), "right": torch.zeros(3, 4)}, ValueError, ["right", "3", "4"]),
        ({"A": torch.zeros(3, 3), "right": torch.zeros(3, 3).double()}, ValueError, ["right", "float64"]),
        ({"A": torch.zeros(2, 3, 3), "right": torch.zeros(3, 3)}, ValueError, ["right"]),
        ({"A": torch.zeros(3, 3), "right": 1.0}, TypeError, ["right", "float"]),
        ({"A": torch.zeros(3, 3), "atol": -1.0}, ValueError, ["atol", "-1"]),
        ({"A": torch.zeros(3, 3), "backend": "lapack"}, ValueError, ["backend", "lapack"]),
    ],
)
def test_small_spectra_refuses(arguments, error, words):
    with pytest.raises(error) as caught:
        ek.small_spectra(**arguments)
    assert all(word in str(caught.value) for word in words), caught.value


# --- backends against the definition ----------------------------------------------------------------------------------


def test_the_three_metrics_fit_together():
    torch.manual_seed(16)
    values = powers(0, -4, 12)
    T = corner(values)
    assert ek.tolerance_ess(T, 1e-2 * 1.1, positions=[12]).tolist() == [int((values > 1.1e-2).sum())]
    assert_close("values", ek.singular_values(T, [12])[0], values, rtol=1e-10)
    p = values / values.sum()
    assert_close("entropy", ek.entropy_ess(T, [12])[0], torch.exp(-(p * p.log()).sum()), rtol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_against_the_reference_functions(op, backend):
    assert torch.equal(ek.tolerance_ess(op, [0.3, 1e-3], backend=backend), reference_tolerance_ess(op, [0.3, 1e-3]))
    assert_close("entropy", ek.entropy_ess(op, backend=backend), reference_entropy_ess(op), rtol=1e-5)
