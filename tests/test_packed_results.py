"""Packed and padded batches: what is made of their answers, and what is refused."""

import pytest
import torch
from packed_inputs import CU, PAIRS, T, gla_inputs
from torch import Tensor

import ess_kernels as ek
from ess_kernels import aggregate, operators
from ess_kernels.reference import reference_entropy_ess, reference_tolerance_ess
from ess_kernels.testing.cases import rand, randn


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


# --- what is made of the answers --------------------------------------------------------------------------------------


def test_caps_and_shares():
    op = operators.gla(*gla_inputs(n=4), cu_seqlens=CU)
    counts = ek.tolerance_ess(op, 1e-9)
    caps = [[min(i, b - a - i, 4) for i in range(1, b - a)] for a, b in PAIRS]
    assert [x.tolist() for x in ek.split(aggregate.cap(op).expand(1, 2, -1), op)] == [[c, c] for c in caps]
    assert aggregate.cap(op, [6, 5, 30]).tolist() == [0, 0, 4]
    every = [x for one in caps for x in one]
    shares = aggregate.saturated(counts, op)
    hits = torch.cat([x >= 0.9 * torch.tensor(c) for x, c in zip(ek.split(counts, op), caps) if c], -1)
    torch.testing.assert_close(shares[0], hits.double().mean(-1))
    mean = torch.cat(ek.split(counts, op), -1).double().mean()
    torch.testing.assert_close(aggregate.average_ess(counts, op=op), mean)
    torch.testing.assert_close(aggregate.average_ess([counts, 2 * counts], op=op), 1.5 * mean)
    torch.testing.assert_close(aggregate.total_ess(counts, op=op), 2 * mean)
    torch.testing.assert_close(
        aggregate.average_ess(counts[..., [0, 4, 29]], op=op, positions=[1, 5, 30]),
        counts[..., [0, 29]].double().mean(),
    )
    used = aggregate.utilisation(counts, op, "cap")
    assert torch.equal(used.isnan(), ~op.valid[:, None].expand(1, 2, -1))
    assert len(every) == int(op.valid.sum())
    with pytest.raises(ValueError, match="positions: expected None without op"):
        aggregate.average_ess(counts, positions=[1, 2])
    with pytest.raises(ValueError, match="length: expected None beside op, got 80"):
        aggregate.average_ess(counts, op=op, length=80)
    with pytest.raises(ValueError, match="ess: expected 79 positions in its last axis, got 3"):
        aggregate.average_ess(counts[..., :3], op=op)


def test_caps_of_rows_that_differ():
    mask = torch.tensor([[0] * 10 + [1] * 40, [1] * 50])
    op = operators.attention(randn(2, 3, 50, 4), randn(2, 3, 50, 4), attention_mask=mask)
    counts = ek.tolerance_ess(op, 1e-6)
    caps = aggregate.cap(op)
    assert caps.shape == (2, 1, 49)
    assert caps[0, 0].tolist() == [0] * 10 + [min(i, 40 - i) for i in range(1, 40)]
    assert caps[1, 0].tolist() == [min(i, 50 - i) for i in range(1, 50)]
    assert bool((counts <= caps).all())
    alone = operators.attention(op.arguments["q"][:1, :, 10:], op.arguments["k"][:1, :, 10:])
    for function in (aggregate.saturated, aggregate.collapsed):
        torch.testing.assert_close(function(counts, op)[0], function(counts[:1, :, 10:], alone)[0])
    found = aggregate.utilisation(counts, op)[0, :, 10:]
    torch.testing.assert_close(found, aggregate.utilisation(counts[:1, :, 10:], alone)[0])
    wanted = torch.cat([counts[0, :, 10:].flatten(), counts[1].flatten()]).double().mean()
    torch.testing.assert_close(aggregate.average_ess(counts, op=op), wanted)
    with pytest.raises(ValueError, match=r"ess: expected shape \[..., 2, H, 49\], got \[3, 49\]"):
        aggregate.utilisation(counts[0], op)


def test_any_operator_has_bounds():
    op = operators.gla(*gla_inputs(7, batch=3))
    start, stop = op.sequence_bounds()
    assert start.dtype == stop.dtype == torch.int64
    assert torch.equal(start, torch.zeros(3, 6, dtype=torch.int64)) and torch.equal(stop, torch.full((3, 6), 7))
    assert op.valid.shape == (3, 6) and bool(op.valid.all())
    assert operators.convolution(randn(5, 7)).valid.shape == (1, 6)
    counts = ek.tolerance_ess(op)
    assert all(map(torch.equal, ek.split(counts, op), counts))
    T = randn(7, 7)
    assert torch.equal(ek.split(ek.tolerance_ess(T), T)[0], ek.tolerance_ess(T))


def test_split_refuses_other_shapes():
    op = operators.gla(*gla_inputs(), cu_seqlens=CU)
    with pytest.raises(ValueError, match=r"result: expected shape \[..., 1, 2, 79\], got \[2, 79\]"):
        ek.split(torch.zeros(2, 79), op)
    with pytest.raises(TypeError, match="result: expected a tensor, got list"):
        ek.split([1], op)


def test_plots_draw_the_cap_of_each_sequence():
    pytest.importorskip("matplotlib")
    from ess_kernels.analysis.plots import Curves, plot_ess

    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    for marks in ({"cu_seqlens": torch.tensor([0, 2, 6])}, {"attention_mask": mask}):
        op = operators.gla(*gla_inputs(6, batch=1 + ("attention_mask" in marks)), **marks)
        cap = aggregate.cap(op)
        entropy, counts = ek.entropy_ess(op), ek.tolerance_ess(op, [1e-3])
        figure = plot_ess([Curves("", cap, entropy.flatten(0, 1), counts.flatten(1, 2))], [1e-3])
        lines = figure.axes[0].lines
        drawn = [line.get_ydata().tolist() for line in lines if line.get_linestyle() == "--"]
        assert sorted(drawn) == sorted(cap.reshape(-1, 5).tolist())
        assert int(torch.tensor(lines[0].get_ydata()).isfinite().sum()) == int(op.valid.any(0).sum())


@pytest.mark.parametrize("family", ["gla", "attention"])
def test_randomized(family):
    tensors = gla_inputs() if family == "gla" else (randn(1, 2, T, 4), randn(1, 2, T, 4))
    op = getattr(operators, family)(*tensors, cu_seqlens=CU)
    found = ek.randomized_ess(op, range(1, T), atol=[0.1, 1e-3], rank=30)
    wanted = ek.tolerance_ess(op, [0.1, 1e-3])
    assert torch.equal(found.count[found.certified], wanted[found.certified])
    outside = ~op.valid[0]
    assert bool(found.certified[..., outside].all()) and not bool(found.error[..., outside].any())
    assert float(found.certified.double().mean()) > 0.9
    assert ek.randomized_ess(op, [5, 3]).count.shape == (1, 2, 2)


def test_reference_functions_take_lists():
    op = operators.gla(*gla_inputs(), cu_seqlens=CU)
    counts = reference_tolerance_ess(op, [1e-1, 1e-3], [0.0, 0.1], positions=[3, 9, 5])
    assert counts.shape == (2, 1, 2, 3)
    assert torch.equal(counts[0], reference_tolerance_ess(op, 1e-1, positions=[3, 9, 5]))
    assert torch.equal(reference_entropy_ess(op, [3, 9, 5]), reference_entropy_ess(op)[..., [2, 8, 4]])


# --- bad input --------------------------------------------------------------------------------------------------------

MASK = torch.ones(1, T, dtype=torch.int64)
HOLES = MASK.clone().index_fill_(1, torch.tensor([5]), 0)
REFUSED = [
    ({"cu_seqlens": CU, "attention_mask": MASK}, ValueError, "attention_mask: expected None beside cu_seqlens, got"),
    ({"cu_seqlens": CU.tolist()}, TypeError, "cu_seqlens: expected a tensor of integers, got list"),
    ({"cu_seqlens": CU.double()}, TypeError, "cu_seqlens: expected int32 or int64, got torch.float64"),
    ({"cu_seqlens": CU.bool()}, TypeError, "cu_seqlens: expected int32 or int64, got torch.bool"),
    ({"cu_seqlens": CU[None]}, ValueError, "cu_seqlens: expected one axis [N + 1], from 0 to the total, got shape"),
    ({"cu_seqlens": CU[:0]}, ValueError, "cu_seqlens: expected one axis [N + 1], from 0 to the total, got shape [0]"),
    ({"cu_seqlens": CU[1:]}, ValueError, "cu_seqlens: expected 0 as its first number, got 5"),
    ({"cu_seqlens": CU[:-1]}, ValueError, "cu_seqlens: expected the number of tokens 80 as its last number, got 63"),
    ({"cu_seqlens": 2 * CU}, ValueError, "cu_seqlens: expected the number of tokens 80 as its last number, got 160"),
    (
        {"cu_seqlens": torch.tensor([0, 9, 8, T])},
        ValueError,
        "cu_seqlens: expected numbers that do not decrease, got 8",
    ),
    ({"cu_seqlens": CU.to("meta")}, ValueError, "cu_seqlens: expected q's device cpu, got meta"),
    (
        {"attention_mask": HOLES},
        ValueError,
        "attention_mask: expected one run of ones in each row, got ones with zeros",
    ),
    ({"attention_mask": 2 * MASK}, ValueError, "attention_mask: expected ones and zeros, got [2]"),
    (
        {"attention_mask": MASK.double()},
        TypeError,
        "attention_mask: expected bool or int32 or int64, got torch.float64",
    ),
    ({"attention_mask": MASK[0]}, ValueError, "attention_mask: expected shape [B, T] = [1, 80], got [80]"),
    ({"attention_mask": MASK[:, 1:]}, ValueError, "attention_mask: expected shape [B, T] = [1, 80], got [1, 79]"),
    (
        {"attention_mask": MASK.expand(2, -1)},
        ValueError,
        "attention_mask: expected shape [B, T] = [1, 80], got [2, 80]",
    ),
    ({"attention_mask": MASK.to_sparse()}, TypeError, "attention_mask: expected a strided tensor"),
]


@pytest.mark.parametrize("marks, error, message", REFUSED, ids=[f"{n} {m[2][:60]}" for n, m in enumerate(REFUSED)])
def test_refused(marks: dict[str, Tensor], error, message):
    with pytest.raises(error) as caught:
        operators.gla(*gla_inputs(), **marks)
    assert str(caught.value).startswith(message)


def test_refused_for_several_rows():
    with pytest.raises(ValueError, match="cu_seqlens: expected one row of packed tokens, B = 1, got B = 2"):
        operators.gla(*gla_inputs(batch=2), cu_seqlens=CU)
    with pytest.raises(ValueError, match=r"seq_idx: expected shape \[B, T\] = \[2, 9\], got \[1, 9\]"):
        operators.ssd(rand(2, 9, 3), -rand(3), randn(2, 9, 1, 4), randn(2, 9, 1, 4), seq_idx=torch.zeros(1, 9).int())
    with pytest.raises(TypeError, match=r"seq_idx: expected int32 or int64, got torch\.bool"):
        operators.short_convolution(randn(2, 3), 9, seq_idx=torch.zeros(1, 9).bool())
    with pytest.raises(TypeError, match="seq_idx"):
        operators.gla(*gla_inputs(), seq_idx=CU)  # gla has no such argument


def test_other_arguments_are_checked_first():
    q, k, g = gla_inputs()
    with pytest.raises(ValueError, match="g: expected shape"):
        operators.gla(q, k, g[:, 1:], cu_seqlens=CU)
