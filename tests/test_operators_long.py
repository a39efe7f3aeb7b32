"""Every family with a finite state at a length that has many blocks: no count is wrong at any position."""

import pytest
import test_operators
import test_operators_diagonal
import torch

import ess_kernels as ek
from ess_kernels.testing import OperatorTestCase, assert_close

LENGTH = 256
RATIOS = [10.0**-digits for digits in range(1, 8)]

FAMILIES = {
    name: family
    for module in (test_operators, test_operators_diagonal)
    for name, family in vars(module).items()
    if name.startswith("Test") and issubclass(family, OperatorTestCase)
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
