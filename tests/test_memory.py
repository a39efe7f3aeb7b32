"""Workspace within a budget, and work in proportion to what is asked for."""

import pytest
import torch
from torch.nn.functional import logsigmoid
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

import ess_kernels as ek
from ess_kernels.environment import MEMORY_BUDGET
from ess_kernels.testing import assert_close
from ess_kernels.testing.cases import build, randn

SOME = [
    "gla: decay",
    "gla: rows fall far",
    "retention: plain",
    "ssd: groups",
    "selective_scan: groups",
    "recurrence: dense",
    "attention: grouped queries",
    "attention: packed documents",
    "dense: noise",
    "dense: rows fall far",
    "gated_convolution: plain",
]


class Work(TorchDispatchMode):
    """Counts the numbers that all operations write, and remembers the largest tensor among them."""

    def __init__(self):
        super().__init__()
        self.numbers = 0
        self.largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for x in tree_leaves(result):
            # views and expanded tensors cost nothing
            if isinstance(x, torch.Tensor) and not x._is_view():
                self.numbers += x.numel()
                self.largest = max(self.largest, x.untyped_storage().nbytes())
        return result


def work(function):
    # threads do not inherit the mode
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with Work() as counter:
            function()
    finally:
        torch.set_num_threads(threads)
    return counter


def everything(op):
    counts, certificate = ek.tolerance_ess(op, [1e-1, 1e-3, 1e-9], backend="torch", certificate=True)
    return counts, *certificate, ek.entropy_ess(op, backend="torch"), ek.singular_values(op, [3, 7], backend="torch")


@pytest.mark.parametrize("name", SOME)
@pytest.mark.parametrize("budget", ["1", "64KiB", "1MiB"])
def test_a_small_budget_changes_nothing(name, budget, monkeypatch):
    op = build(name)
    wanted = everything(op)
    monkeypatch.setenv(MEMORY_BUDGET, budget)
    found = everything(op)
    for label, x, y in zip(
        ("counts", "redone", "unresolved"), (found[i] for i in (0, 2, 3)), (wanted[i] for i in (0, 2, 3))
    ):
        assert torch.equal(x, y), label
    assert_close("width", found[1], wanted[1], rtol=0.5, atol=1e-12)
    assert_close("entropy", found[4], wanted[4], rtol=1e-7)
    assert_close("values", found[5], wanted[5], rtol=1e-13)


def test_a_batch_is_cut_to_the_budget(monkeypatch):
    """16 heads, of which the budget holds about one."""
    torch.manual_seed(0)
    T = randn(16, 64, 64)
    op = ek.operators.gla(*(randn(4, 96, 4, 8) for _ in range(2)), logsigmoid(randn(4, 96, 4, 8)))
    dense_whole = work(lambda: ek.tolerance_ess(ek.operators.attention(*randn(2, 4, 4, 64, 8)), 1e-2))
    whole = work(lambda: ek.tolerance_ess(op, 1e-2))
    monkeypatch.setenv(MEMORY_BUDGET, "256KiB")
    dense_cut = work(lambda: ek.tolerance_ess(ek.operators.attention(*randn(2, 4, 4, 64, 8)), 1e-2))
    cut = work(lambda: ek.tolerance_ess(op, 1e-2))
    assert dense_cut.largest < dense_whole.largest / 3
    assert cut.largest < whole.largest / 3
    assert bool((ek.tolerance_ess(T, 1e-2) >= 0).all())


def test_a_wrong_budget_is_named(monkeypatch):
    monkeypatch.setenv(MEMORY_BUDGET, "much")
    with pytest.raises(ValueError, match=rf"{MEMORY_BUDGET}.*'much'"):
        ek.tolerance_ess(torch.zeros(4, 4))


def long_gla(length, n=16):
    torch.manual_seed(length)
    q, k = randn(1, length, 1, n) / n**0.5, randn(1, length, 1, n)
    return ek.operators.gla(q, k, logsigmoid(randn(1, length, 1, n)) / 16)


@pytest.mark.parametrize("metric", ["tolerance", "entropy"])
def test_one_position_of_a_recurrence_costs_little(metric):
    op = long_gla(2048, 8)
    call = {
        "tolerance": lambda positions: ek.tolerance_ess(op, 1e-3, positions=positions, backend="torch"),
        "entropy": lambda positions: ek.entropy_ess(op, positions, backend="torch"),
    }[metric]
    one, all_of_them = work(lambda: call([1000])).numbers, work(lambda: call(None)).numbers
    assert one < all_of_them / 5
    assert torch.equal(ek.tolerance_ess(op, 1e-3, positions=[1000]), ek.tolerance_ess(op, 1e-3)[..., 999:1000])


@pytest.mark.parametrize("metric", ["tolerance", "entropy"])
def test_one_position_of_a_matrix_costs_little(metric):
    torch.manual_seed(1)
    T = (2 * randn(384, 384)).tril().softmax(-1)
    call = {
        "tolerance": lambda positions: ek.tolerance_ess(T, 1e-3, positions=positions, backend="torch"),
        "entropy": lambda positions: ek.entropy_ess(T, positions, backend="torch"),
    }[metric]

    def flops(positions):
        with FlopCounterMode(display=False) as counter:
            call(positions)
        return counter.get_total_flops()

    assert flops([100]) < flops(None) / 2
    assert work(lambda: call([100])).numbers < work(lambda: call(None)).numbers / 2


def test_work_of_a_recurrence_grows_with_its_length():
    numbers = [work(lambda length=length: ek.tolerance_ess(long_gla(length), 1e-3)).numbers for length in (256, 1024)]
    assert numbers[1] < 4.6 * numbers[0]
    numbers = [work(lambda length=length: ek.entropy_ess(long_gla(length))).numbers for length in (256, 1024)]
    assert numbers[1] < 4.6 * numbers[0]


def test_a_recurrence_never_forms_its_matrix():
    length = 4096
    counter = work(lambda: ek.tolerance_ess(long_gla(length, 4), 1e-3))
    assert counter.largest < 8 * length * length / 4


@pytest.mark.slow
def test_a_long_recurrence_of_many_heads_stays_within_its_budget():
    torch.manual_seed(2)
    q, k, g = randn(1, 8192, 8, 64) / 8, randn(1, 8192, 8, 64), logsigmoid(randn(1, 8192, 8, 64)) / 16
    counter = work(lambda: ek.tolerance_ess(ek.operators.gla(q, k, g), 1e-3))
    assert counter.largest < 2**30
