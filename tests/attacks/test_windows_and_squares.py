"""Windows that masks do not have, and numbers whose squares leave the range of float64."""

import pytest
import torch

import ess_kernels as ek
from ess_kernels import operators
from ess_kernels.backends import chunks, windowed
from ess_kernels.engine import few_dense
from ess_kernels.reference import reference_singular_values, reference_tolerance_ess

BACKENDS = ("torch", "native")


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(len(shape)))


def seen_by(length: int, window: int, first: int = 0) -> torch.Tensor:
    """bool `[L, L]`: the last columns of every row and the first ones of all."""
    column = torch.arange(length)
    row = column[:, None]
    return (column <= row) & ((column > row - window) | (column < first))


@pytest.fixture
def by_chunks(monkeypatch):
    monkeypatch.setattr(windowed, "SHORTEST", 2)
    monkeypatch.setattr(chunks, "WORTHWHILE", 1e9)
    monkeypatch.setattr(chunks, "MORE", 1)


def compare(op):
    for backend in BACKENDS:
        values = reference_singular_values(op)
        found = ek.singular_values(op, range(1, op.length), values.shape[-1], backend)
        torch.testing.assert_close(found, values, rtol=0, atol=1e-12)
        assert torch.equal(ek.tolerance_ess(op, [0.7, 0.03], backend=backend), reference_tolerance_ess(op, [0.7, 0.03]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_rows_whose_columns_are_all_hidden_by_low_numbers_see_all_of_them(by_chunks, dtype):
    """Padding on the left: the lowest number is no distance below itself, so that such rows are means."""
    length, padding = 60, 25
    seen = seen_by(length, 3) & (torch.arange(length) >= padding)
    mask = torch.zeros(length, length, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)
    op = operators.attention(randn(1, 2, length, 4), randn(1, 2, length, 4), attn_mask=mask)
    assert op.bandwidth == padding
    compare(op)


def test_first_columns_of_a_mask_lie_behind_the_window(by_chunks):
    op = operators.attention(randn(1, 2, 60, 4), randn(1, 2, 60, 4), attn_mask=seen_by(60, 3, 2), window_size=20)
    assert op.bandwidth == 20
    compare(op)


@pytest.mark.parametrize("backend", BACKENDS)
def test_tolerances_far_below_the_numbers_at_few_positions(monkeypatch, backend):
    monkeypatch.setattr(few_dense, "SHORTEST", 2)
    monkeypatch.setattr(few_dense, "STAIRCASE", 1e9)
    T = torch.diag(torch.ones(39, dtype=torch.float64), -1)
    T[30, 5] = 1e-170  # its square is zero
    for tau in (1e-180, 1e-300, 5e-324):
        assert ek.tolerance_ess(T, tau, positions=[20, 31], backend=backend).tolist() == [2, 1]


def test_what_has_no_squares_is_in_the_errors():
    T = torch.zeros(16, 16, dtype=torch.float64)
    T[1, 0] = T[13, 12] = 1.0  # inside of blocks
    T[8:, :8] = 1e-170 * randn(8, 8)
    values = reference_singular_values(T, [8])[0]
    for error in (0.0, 1e-200, 1e-3):
        found = ek.compress(T, error, block=4)
        # in units in which these can be squared
        rest = torch.linalg.svdvals((T - found.dense()) * 1e170)
        assert rest[0] <= found.spectral_error * 1e170
        assert torch.linalg.vector_norm(rest) <= found.frobenius_error * 1e170
        assert rest.sum() <= found.nuclear_error * 1e170
    for tau in (1e-180, float(values[3]) * 0.99):
        bounds = ek.bounded_ess(T, tau, [8], method="compressed")
        assert bounds.lower <= (values > tau).sum() <= bounds.upper


def test_blocks_longer_than_the_sequence_take_no_more_memory():
    T = randn(20, 20)
    found = ek.compress(T, 0.0, block=2**62)
    assert found.block_length == 20 and torch.equal(found.dense(), T.tril(-1))
    assert ek.compress(T[:0, :0], 0.0, block=2**62).dense().shape == (0, 0)


def test_why_nothing_was_answered():
    T = randn(3, 20, 20)
    T[1, 5, 2] = torch.nan
    for found in (ek.bounded_ess(T, positions=[]), ek.bounded_ess(T, []), ek.bounded_entropy_ess(T, [])):
        assert ["NaN" in line for line in found.why] == [False, True, False]
    assert "NaN" not in ek.bounded_ess(T[0, :1, :1]).why[0]


def test_entries_that_become_subnormal_are_in_the_errors():
    T = torch.zeros(16, 16, dtype=torch.float64)
    T[1, 0] = 1e300  # inside of a block: 1e-28 is zero in its units
    T[8:, :8] = 1e-28 * randn(8, 8)
    found = ek.compress(T, 0.0, block=4)
    assert torch.linalg.matrix_norm((T - found.dense()) * 1e20, 2) <= found.spectral_error * 1e20
    T = 1e-300 * randn(54, 54).tril(-1) * 10.0 ** (-torch.arange(54) / 4)[:, None]
    found = ek.compress(T, 0.0, max_rank=0, block=7)
    rest = torch.linalg.svdvals((T - found.dense()) * 2.0**1000)
    assert rest[0] <= found.spectral_error * 2.0**1000 and rest.sum() <= found.nuclear_error * 2.0**1000
