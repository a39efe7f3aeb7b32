"""Gradients of every smooth metric through every constructor in `operators`, against finite differences.

The test cases of the families, which are written in other files here, say how to make their operators.
"""

from importlib import import_module
from inspect import isabstract
from pathlib import Path

import pytest
from torch.autograd import gradcheck

import ess_kernels as ek
from ess_kernels import operators
from ess_kernels.metrics import nuclear_norm, soft_ess
from ess_kernels.testing import OperatorTestCase

METRICS = {
    "entropy": ek.entropy_ess,
    "soft": lambda op: soft_ess(op, [0.05, 0.5]),
    "nuclear": nuclear_norm,
}
# constructors that test cases call in functions of their own
BY_FUNCTIONS = {
    "attention_by_tiles": "tiles",
    "differential": "sum_of",
    "side_by_side": "sum_of",
    "sparse": "nsa",
    "two_decays": "sum_of",
}
# a few that lower to different structures; the others are slow
QUICK = ("gla", "delta_rule", "gated_delta_product", "attention")


def families():
    """The test cases of all families by name."""
    found = {}
    here = Path(__file__).parent
    for path in sorted([*here.glob("test_operators*.py"), *here.glob("test_attention*.py")]):
        for name, case in vars(import_module(path.stem)).items():
            if isinstance(case, type) and issubclass(case, OperatorTestCase) and not isabstract(case):
                constructor = case.constructor.__name__
                found.setdefault(f"{BY_FUNCTIONS.get(constructor, constructor)} {name}", case)
    return found


FAMILIES = families()


def marked(name):
    return name if name.split()[0] in QUICK else pytest.param(name, marks=pytest.mark.slow)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("name", [marked(name) for name in FAMILIES])
def test_gradcheck(name, metric):
    family = FAMILIES[name]()
    inputs = {key: x.requires_grad_() for key, x in family._short_inputs().items()}

    def measure(*tensors):
        return METRICS[metric](family.make_operator(dict(zip(inputs, tensors))))

    assert gradcheck(measure, tuple(inputs.values()), fast_mode=True, atol=1e-5, rtol=1e-3)


def test_every_constructor_is_here():
    refused = {"gated_oja_rule", "mom", "titans", "ttt"}
    others = {"Blocked", "Operator", "StateSpace", "Tiled", "as_operator"}
    missing = set(operators.__all__) - {name.split()[0] for name in FAMILIES} - refused - others
    assert not missing, missing
