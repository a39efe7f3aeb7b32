"""The paper's averages, sums and shares, each on numbers worked out by hand."""

import pytest
import torch

from ess_kernels import operators
from ess_kernels.aggregate import (
    average_ess,
    cap,
    collapsed,
    saturated,
    total_ess,
    total_ess_per_index,
    utilisation,
)
from ess_kernels.testing import assert_close


def number(x):
    return torch.tensor(x, dtype=torch.float64)


# one layer: 2 samples, 3 heads, 4 positions, so L = 5
ESS = torch.arange(24).reshape(2, 3, 4)


def gla(length, size):
    q = torch.zeros(1, length, 1, size)
    return operators.gla(q, q, q)


def test_average():
    assert_close("average", average_ess(ESS), number(11.5))
    assert_close("one head", average_ess(ESS[0, 0]), number(1.5))
    # the paper's formula: position 0 counts as 0
    assert_close("over L", average_ess(ESS, length=5), number(276 / 30))


def test_average_over_layers_of_different_widths():
    layers = [torch.full((2, 3, 4), 2.0), torch.full((2, 6, 4), 5.0)]
    assert_close("average", average_ess(layers), number(3.5))
    stacked = torch.stack([ESS, 3 * ESS])
    assert_close("stacked", average_ess(stacked), average_ess([ESS, 3 * ESS]))


def test_total():
    assert_close("heads", total_ess(ESS), number(3 * 11.5))
    assert_close("channels", total_ess(ESS, channels=12), number(12 * 11.5))
    assert_close("over L", total_ess(ESS, length=5), number(3 * 276 / 30))
    layers = [torch.full((2, 3, 4), 2.0), torch.full((2, 6, 4), 5.0)]
    assert_close("layers", total_ess(layers), number((6 + 30) / 2))


def test_total_per_index():
    expected = ESS.double().mean(0).sum(0)
    assert_close("heads", total_ess_per_index(ESS), expected)
    assert_close("channels", total_ess_per_index(ESS, channels=6), 2 * expected)
    assert_close("mean of layers", total_ess_per_index([ESS, 3 * ESS]), 2 * expected)
    assert_close("stacked layers", total_ess_per_index(torch.stack([ESS, 3 * ESS])), 2 * expected)
    assert_close("sum of layers", total_ess_per_index([ESS, 3 * ESS], layers="sum"), 4 * expected)
    assert_close("mean is total", total_ess_per_index(ESS).mean(), total_ess(ESS))


def test_bad_data_is_never_averaged():
    bad = ESS.clone()
    bad[1, 2, 3] = -1
    entropy = torch.where(bad < 0, torch.nan, bad.double())
    for spoilt in (bad, entropy):
        assert average_ess(spoilt).isnan()
        assert average_ess([ESS, spoilt]).isnan()
        assert total_ess(spoilt).isnan()
        assert total_ess_per_index(spoilt).isnan().tolist() == [False, False, False, True]
        shares = saturated(spoilt, gla(5, 8))
        assert shares.isnan().tolist() == [[False] * 3, [False, False, True]]
        assert utilisation(spoilt, gla(5, 8)).isnan().sum() == 1


def test_cap():
    assert cap(gla(9, 3)).tolist() == [1, 2, 3, 3, 3, 3, 2, 1]
    assert cap(gla(9, 3), [8, 4]).tolist() == [1, 3]
    assert cap(torch.zeros(2, 6, 6)).tolist() == [1, 2, 3, 2, 1]
    q = torch.zeros(1, 1, 6, 2)
    assert cap(operators.attention(q, q)).tolist() == [1, 2, 3, 2, 1]
    assert cap(operators.short_convolution(torch.zeros(1, 1), 5)).tolist() == [0, 0, 0, 0]
    assert cap(gla(1, 3)).shape == (0,)


def test_utilisation():
    op = gla(9, 4)
    ess = cap(op)
    assert_close("tss", utilisation(ess, op), ess / 4)
    assert_close("cap", utilisation(ess, op, against="cap"), torch.ones(8))
    assert_close("subset", utilisation(ess[[7, 2]], op, "cap", positions=[8, 3]), torch.ones(2))
    # without a finite state the TSS at position i is i
    T = torch.zeros(9, 9)
    full = cap(T)
    assert_close("trivial", utilisation(full, T), full.double() / torch.arange(1, 9))
    stateless = operators.short_convolution(torch.zeros(1, 1), 5)
    assert utilisation(torch.zeros(1, 4), stateless).isnan().all()


def test_the_ceiling_of_short_windows():
    """Mean ESS/TSS cannot reach 1: 0.889 for L = 64, n = 8, as the cap alone says."""
    op = gla(64, 8)
    assert abs(float(cap(op).sum()) / 64 / 8 - 0.875) < 1e-12
    assert abs(float(utilisation(cap(op), op).mean()) - 0.889) < 5e-4


def test_saturated():
    op = gla(9, 4)
    caps = cap(op)  # 1 2 3 4 4 3 2 1
    ess = torch.stack([caps, caps - 1, torch.tensor([1, 2, 3, 3, 4, 2, 2, 0])])
    assert_close("share", saturated(ess, op), number([1.0, 0.0, 5 / 8]))
    assert_close("three quarters", saturated(ess, op, fraction=0.75), number([1.0, 2 / 8, 6 / 8]))
    assert saturated(torch.zeros(1, 4), operators.short_convolution(torch.zeros(1, 1), 5)).isnan().all()


def test_collapsed():
    op = gla(64, 32)
    caps = cap(op)
    eligible = int((caps >= 16).sum())
    assert eligible == 33
    counts = torch.stack([torch.zeros(63), caps, torch.full((63,), 2), torch.full((63,), 3)]).long()
    # 2 < 0.1 cap where the cap is above 20 (20 and below: 2 >= 0.1 cap), 3 where it is above 30
    expected = [1.0, 0.0, int((caps > 20).sum()) / 33, int((caps > 30).sum()) / 33]
    assert_close("share", collapsed(counts, op), number(expected))
    assert collapsed(torch.zeros(8), gla(9, 4)).isnan()


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: average_ess([]), ValueError, ["ess", "at least one layer"]),
        (lambda: average_ess(3.0), TypeError, ["ess", "tensor", "float"]),
        (lambda: average_ess([ESS, None]), TypeError, ["ess[1]", "tensor", "NoneType"]),
        (lambda: average_ess(ESS > 3), TypeError, ["ess", "bool"]),
        (lambda: average_ess(ESS, length=6), ValueError, ["ess", "5 positions", "4"]),
        (lambda: total_ess(ESS[0, 0]), ValueError, ["ess", "[..., H, P]", "[4]"]),
        (lambda: total_ess(ESS, channels=4), ValueError, ["channels", "3 heads", "4"]),
        (lambda: total_ess_per_index(ESS, layers="max"), ValueError, ["layers", "'mean' or 'sum'", "'max'"]),
        (lambda: total_ess_per_index(ESS, layers="sum"), ValueError, ["ess", "list", "tensor"]),
        (lambda: total_ess_per_index([ESS, ESS[..., :2]]), ValueError, ["ess", "positions", "[2, 4]"]),
        (lambda: utilisation(ESS, gla(6, 2)), ValueError, ["ess", "5 positions", "4"]),
        (lambda: utilisation(ESS, gla(5, 2), against="n"), ValueError, ["against", "'tss' or 'cap'", "'n'"]),
        (lambda: saturated(ESS, gla(5, 2), fraction="most"), TypeError, ["fraction", "number", "str"]),
        (lambda: collapsed(ESS, "gla"), TypeError, ["op", "operator", "str"]),
    ],
)
def test_refusals(call, error, words):
    with pytest.raises(error) as caught:
        call()
    assert all(word in str(caught.value) for word in words), caught.value
