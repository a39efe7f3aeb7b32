"""Every family at a length that has many blocks, and in compiled graphs at several lengths."""

import pytest
import test_attention_distance
import test_operators
import test_operators_attention_kin
import test_operators_grouped
import test_operators_linear
import test_operators_recurrent
import test_operators_short_convolutions
import test_operators_slots
import test_operators_sparse
import test_operators_sum_of
import torch

import ess_kernels as ek
from ess_kernels.testing import OperatorTestCase, assert_close

LENGTH = 256
RATIOS = [10.0**-digits for digits in range(1, 8)]

MODULES = (
    test_operators,
    test_operators_grouped,
    test_operators_linear,
    test_operators_recurrent,
    test_operators_short_convolutions,
    test_operators_slots,
)
ATTENTION = (test_attention_distance, test_operators_attention_kin, test_operators_sparse, test_operators_sum_of)


def families_of(modules):
    return {
        name: family
        for module in modules
        for name, family in vars(module).items()
        if name.startswith("Test") and issubclass(family, OperatorTestCase)
    }


FAMILIES = {
    name: family
    for name, family in families_of(MODULES).items()
    # the length of some is part of their options
    if len(family.lengths) > 1 and family.state_size not in (None, 0)
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_no_count_is_wrong(name):
    case = FAMILIES[name]()
    inputs = case.inputs(LENGTH)
    op = case.make_operator(inputs)
    T = op.dense()
    unit = float(T.abs().amax())
    assert_close("T", T / unit, case.dense(**inputs) / unit, 0, 1e-12)
    check_counts(case, op)


@pytest.mark.slow
@pytest.mark.parametrize("name", families_of(ATTENTION))
def test_no_count_of_attention_is_wrong(name):
    """Their loops over rows and states take too long for T itself at this length."""
    case = families_of(ATTENTION)[name]()
    check_counts(case, case.make_operator(case.inputs(LENGTH)))


def check_counts(case, op):
    """Counts and entropies of every fast backend against one SVD per position."""
    values = ek.singular_values(op, range(1, LENGTH), backend="reference")
    largest = values[..., :1]
    wanted = torch.stack([(values > ratio * largest).sum(-1) for ratio in RATIOS])
    entropy = ek.entropy_ess(op, backend="reference")
    for backend in case._fast_backends(op):
        counts, certificate = ek.tolerance_ess(op, rtol=RATIOS, backend=backend, certificate=True)
        resolved = ~certificate.unresolved
        assert float(resolved.double().mean()) > 0.99
        assert_close(f"{backend}: counts", counts[resolved], wanted[resolved], 0, 0)
        assert_close(f"{backend}: entropy", ek.entropy_ess(op, backend=backend), entropy, rtol=1e-4)


@pytest.mark.parametrize("name", ["TestRWKV4", "TestGSA", "TestMesaNet", "TestMLSTM", "TestMamba3"])
def test_a_graph_at_several_lengths(name):
    """What is accumulated over time takes steps that depend on the length, which a graph may have as a symbol."""
    case = FAMILIES[name]()
    names = list(case.inputs(3))

    def counts(*tensors):
        return ek.tolerance_ess(case.make_operator(dict(zip(names, tensors))), 0.3)

    torch._dynamo.reset()
    compiled = torch.compile(counts, fullgraph=True, backend="eager")
    for length in (5, 6, 12):
        tensors = case.inputs(length).values()
        assert torch.equal(compiled(*tensors), counts(*tensors))
