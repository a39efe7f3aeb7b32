"""The oracle itself: known spectra, conventions, bad data, and the paper's printed program."""

import math

import pytest
import torch

from ess_kernels import operators
from ess_kernels.reference import (
    paper_entropy_ess,
    paper_submatrix,
    paper_tolerance_ess,
    reference_entropy_ess,
    reference_singular_values,
    reference_tolerance_ess,
)
from ess_kernels.testing import assert_close


def with_spectrum(values):
    """`T` of length `2n` whose middle block `H_n` has these singular values."""
    n = len(values)
    U, V = (torch.linalg.qr(torch.randn(n, n, dtype=torch.float64)).Q for _ in range(2))
    T = torch.zeros(2 * n, 2 * n, dtype=torch.float64)
    T[n:, :n] = U @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ V
    return T


def test_known_spectrum():
    values = [4.0, 2.0, 1.0, 0.5]
    T = with_spectrum(values)
    assert_close("s", reference_singular_values(T, [4]), torch.tensor([values]))
    counts = [int(reference_tolerance_ess(T, atol, positions=[4])) for atol in (5, 3, 0.9, 0.1)]
    assert counts == [0, 1, 3, 4]
    p = [s / 7.5 for s in values]
    entropy = math.exp(-sum(x * math.log(x) for x in p))
    assert_close("entropy", reference_entropy_ess(T, [4]), torch.tensor([entropy], dtype=torch.float64))


def test_relative_tolerance_is_of_each_position():
    T = with_spectrum([4.0, 2.0, 1.0, 0.5])
    assert int(reference_tolerance_ess(T, 0, 0.3, positions=[4])) == 2
    assert int(reference_tolerance_ess(T, 3, 0.3, positions=[4])) == 1
    # c T has the same relative counts at every position
    G = torch.randn(3, 12, 12)
    assert torch.equal(reference_tolerance_ess(G, None, 0.2), reference_tolerance_ess(8 * G, None, 0.2))


def test_the_threshold_itself_does_not_count():
    """Here the singular values are exact, 1 at every position."""
    T = torch.zeros(4, 4)
    T[3, 0] = 1
    assert reference_tolerance_ess(T, 1.0).tolist() == [0, 0, 0]
    assert reference_tolerance_ess(T, 0.0, 1.0).tolist() == [0, 0, 0]
    assert reference_tolerance_ess(T, 0.999).tolist() == [1, 1, 1]
    assert paper_tolerance_ess(T, 1.0).tolist() == [1, 1, 1]


def test_zero_is_zero():
    T = torch.eye(6)
    assert reference_tolerance_ess(T, 0.0).tolist() == [0] * 5
    assert reference_entropy_ess(T).tolist() == [0.0] * 5
    assert bool(paper_entropy_ess(T).isnan().all())


def test_positions_and_shapes():
    op = operators.gla(torch.randn(2, 9, 3, 2), torch.randn(2, 9, 3, 2), -torch.rand(2, 9, 3, 2))
    positions = [7, 2, 7]
    everything = reference_tolerance_ess(op, 1e-3)
    assert everything.shape == (2, 3, 8) and everything.dtype == torch.int64
    assert torch.equal(reference_tolerance_ess(op, 1e-3, positions=positions), everything[..., [6, 1, 6]])
    listed = reference_tolerance_ess(op, [1e-3, 1.0], [0.0, 0.5], positions=torch.tensor(positions))
    assert listed.shape == (2, 2, 3, 3) and torch.equal(listed[0], everything[..., [6, 1, 6]])
    assert reference_tolerance_ess(op, []).shape == (0, 2, 3, 8)
    entropy = reference_entropy_ess(op)
    assert entropy.shape == (2, 3, 8) and entropy.dtype == torch.float64
    values = reference_singular_values(op, [1, 4, 8])
    assert values.shape == (2, 3, 3, 4) and bool((values[:, :, [0, 2], 1:] == 0).all())
    assert bool((values[..., 2:] < 1e-14).all())


@pytest.mark.parametrize("length", [0, 1])
def test_nothing_to_measure(length):
    T = torch.zeros(2, 3, length, length)
    assert reference_tolerance_ess(T, 1e-3).shape == (2, 3, 0)
    assert reference_entropy_ess(T).shape == (2, 3, 0)
    assert reference_singular_values(T).shape == (2, 3, 0, 0)
    assert paper_tolerance_ess(T).shape == paper_entropy_ess(T).shape == (2, 3, 0)


def test_no_batch_and_empty_batch():
    assert reference_tolerance_ess(torch.randn(5, 5), 1e-3).shape == (4,)
    assert reference_singular_values(torch.randn(5, 5)).shape == (4, 2)
    empty = torch.zeros(0, 3, 5, 5)
    assert reference_tolerance_ess(empty, 1e-3).shape == reference_entropy_ess(empty).shape == (0, 3, 4)
    assert reference_singular_values(empty).shape == (0, 3, 4, 2)


def test_only_the_strictly_lower_part_is_read():
    T = torch.randn(3, 7, 7)
    spoilt = torch.where(torch.ones(7, 7).bool().triu(), torch.nan, T)
    assert torch.equal(reference_tolerance_ess(spoilt, 0.5), reference_tolerance_ess(T, 0.5))
    assert torch.equal(reference_entropy_ess(spoilt), reference_entropy_ess(T))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_bad_data_marks_all_positions_of_its_head(value):
    q, k = torch.randn(2, 6, 3, 2), torch.randn(2, 6, 3, 2)
    good = operators.linear_attention(q, k)
    bad_q = q.clone()
    bad_q[1, 5, 2, 0] = value
    bad = operators.linear_attention(bad_q, k)
    others = torch.ones(2, 3).bool()
    others[1, 2] = False
    counts, entropy = reference_tolerance_ess(bad, 0.1), reference_entropy_ess(bad)
    values = reference_singular_values(bad)
    assert (counts[1, 2] == -1).all() and entropy[1, 2].isnan().all() and values[1, 2].isnan().all()
    assert torch.equal(counts[others], reference_tolerance_ess(good, 0.1)[others])
    assert torch.equal(entropy[others], reference_entropy_ess(good)[others])
    assert torch.equal(values[others], reference_singular_values(good)[others])


def test_products_that_overflow_are_bad_data():
    q = torch.full((1, 5, 1, 2), 1e200, dtype=torch.float64)
    op = operators.linear_attention(q, q)
    assert (reference_tolerance_ess(op, 0.1) == -1).all() and reference_entropy_ess(op).isnan().all()


def test_equal_singular_values_have_an_entropy_equal_to_their_number():
    assert_close("entropy", reference_entropy_ess(with_spectrum([3.0] * 5), [5]), torch.tensor([5.0]), rtol=1e-12)


def test_gradient_of_the_entropy():
    T = torch.randn(2, 6, 6, dtype=torch.float64).tril(-1).requires_grad_()
    assert torch.autograd.gradcheck(reference_entropy_ess, (T,))


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: reference_tolerance_ess(torch.zeros(4, 4), -1), ValueError, ["atol", "-1"]),
        (lambda: reference_tolerance_ess(torch.zeros(4, 4), 0, positions=[4]), ValueError, ["positions", "1..3", "4"]),
        (lambda: reference_entropy_ess([1.0]), TypeError, ["op", "list"]),
        (lambda: reference_singular_values(torch.zeros(4, 3), [1]), ValueError, ["T", "[4, 3]"]),
    ],
)
def test_refusals(call, error, words):
    with pytest.raises(error) as caught:
        call()
    assert all(word in str(caught.value) for word in words), caught.value


# --- the paper's program ------------------------------------------------------------------------------------


def test_paper_submatrix():
    T = torch.arange(36.0).reshape(6, 6)
    assert torch.equal(paper_submatrix(T, 2), T[2:, :2])
    assert torch.equal(paper_submatrix(T, 1, d=2), T[2:, :2])
    assert torch.equal(paper_submatrix(T, 2, d=2), T[4:, :4])


def test_the_paper_agrees_where_nothing_is_special():
    attention = torch.randn(2, 3, 8, 8, dtype=torch.float64).tril().softmax(-1).tril()
    assert torch.equal(paper_tolerance_ess(attention, 1e-3), reference_tolerance_ess(attention, 1e-3))
    assert_close("entropy", paper_entropy_ess(attention), reference_entropy_ess(attention), rtol=1e-8)


def test_paper_blocks():
    """A block operator made of one scalar operator a channel: its ESS is the sum over channels."""
    channels = torch.randn(3, 6, 6, dtype=torch.float64).tril()
    T = torch.zeros(6, 3, 6, 3, dtype=torch.float64)
    for channel in range(3):
        T[:, channel, :, channel] = channels[channel]
    counts = paper_tolerance_ess(T.reshape(18, 18), 0.5, d=3)
    assert torch.equal(counts, paper_tolerance_ess(channels, 0.5).sum(0))


def test_paper_clips_and_does_not_renormalise():
    """A vanishing singular value still adds its clipped share."""
    T = with_spectrum([1.0, 0.0])
    clip = 0.1
    expected = math.exp(-(0.0 + clip * math.log(clip)))
    assert_close("clipped", paper_entropy_ess(T, clip)[1:2], torch.tensor([expected], dtype=torch.float64), rtol=1e-12)
