"""Delta rules at all positions against the definition, where keys repeat, gates close and states empty themselves."""

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import normalize

import ess_kernels as ek
from ess_kernels import operators
from ess_kernels.engine.blocks import block_parts, cut
from ess_kernels.reference import reference_entropy_ess
from ess_kernels.testing import assert_close
from ess_kernels.testing.cases import rand, randn
from ess_kernels.testing.registry import spectra

LENGTH, SIZE = 256, 16
FAST = [status.name for status in ek.backends.describe() if status.name in ("torch", "native") and status.usable]


def unit(*shape):
    return normalize(randn(*shape), dim=-1)


def make(rule, **changed):
    """KDA, or the rule given, of unit keys; `beta` may be a number, `k` a function of the random keys."""
    torch.manual_seed(7)
    shape = (1, LENGTH, 1, SIZE)
    inputs = {"q": unit(*shape), "k": unit(*shape), "g": -0.05 * rand(*shape), "beta": rand(*shape[:3])}
    for name, value in changed.items():
        inputs[name] = value(inputs[name]) if callable(value) else torch.full_like(inputs[name], value)
    return rule(inputs)


def kda(x):
    return operators.kda(x["q"], x["k"], g=x["g"], beta=x["beta"])


def gated(x):
    return operators.gated_delta_rule(x["q"], x["k"], g=x["g"][..., 0], beta=x["beta"])


def comba(x):
    p = normalize(x["k"] + 0.3 * x["q"], dim=-1)
    return operators.comba(x["q"], x["k"], p=p, g=x["g"][..., 0], beta=x["beta"])


def gdn2(x):
    return operators.gdn2(x["q"], x["k"], g=x["g"], b=rand(*x["g"].shape))


def rwkv7(x):
    return operators.rwkv7(x["q"], 6 * x["g"], randn(*x["k"].shape), -x["k"], x["k"] * x["beta"][..., None])


def iplr(x):
    return operators.iplr_delta_rule(x["q"], randn(*x["k"].shape) / 9, -x["k"], x["k"] * x["beta"][..., None])


def precond_kda(x):
    atk = {"g_atk": 10 * x["g"][..., 0], "beta_atk": rand(*x["beta"].shape)}
    return operators.precond_kda(x["q"], x["k"], g=x["g"], beta=x["beta"], **atk)


def momentum(x):
    gates = {"log_alpha": x["g"][..., 0], "log_mu": 6 * x["g"][..., 1]}
    return operators.momentum_delta_rule(x["q"], x["k"], p=x["k"], beta=x["beta"], eta=x["beta"], **gates)


def one_key(k):
    return k[:, :1].expand_as(k).contiguous()


def close_keys(k):
    return normalize(k[:, :1] + 1e-3 * k, dim=-1)


def closed(g):
    return g.masked_fill(torch.rand(g.shape) < 0.1, -torch.inf)


def one_step_of_zero(beta):
    beta = beta.clone()
    beta[:, 100] = 0.0
    return beta


CASES = {
    "kda": (kda, {}),
    "gated_delta_rule": (gated, {}),
    "comba": (comba, {}),
    "gdn2": (gdn2, {}),
    "rwkv7": (rwkv7, {}),
    "iplr_delta_rule": (iplr, {}),
    "precond_kda": (precond_kda, {}),
    "momentum_delta_rule": (momentum, {}),
    "no decay, steps of two, one key": (kda, {"g": 0.0, "beta": 2.0, "k": one_key}),
    "no decay, steps of two, close keys": (kda, {"g": 0.0, "beta": 2.0, "k": close_keys}),
    "no decay, steps of one, close keys": (kda, {"g": 0.0, "beta": 1.0, "k": close_keys}),
    "no decay, steps of two": (kda, {"g": 0.0, "beta": 2.0}),
    "gates of 1e-9": (kda, {"g": -20.7}),
    "closed gates": (kda, {"g": closed}),
    "closed heads": (gated, {"g": closed}),
    "a step of zero": (kda, {"beta": one_step_of_zero}),
    "no steps": (kda, {"beta": 0.0}),
}


@pytest.fixture(scope="module", params=CASES)
def case(request):
    rule, changed = CASES[request.param]
    op = make(rule, **changed)
    return op, spectra(op).values[0]


@pytest.mark.parametrize("backend", FAST)
def test_counts_at_every_position(case, backend):
    op, values = case
    largest = float(values.max()) or 1.0
    tolerances = [largest * 10.0**-k for k in range(1, 8)]
    counts, certificate = ek.tolerance_ess(op, tolerances, backend=backend, certificate=True)
    wanted = torch.stack([(values > tau).sum(-1) for tau in tolerances])
    wrong = counts[:, 0, 0] != wanted
    assert not bool(wrong.any()), f"{int(wrong.sum())} of {wrong.numel()}"
    assert not bool(certificate.unresolved.any())


@pytest.mark.parametrize("backend", FAST)
def test_entropy_at_every_position(case, backend):
    op, _ = case
    found, certificate = ek.entropy_ess(op, backend=backend, certificate=True)
    assert not bool(certificate.unresolved.any())
    assert_close("entropy", found, reference_entropy_ess(op), rtol=1e-4)


@pytest.mark.parametrize("backend", FAST)
def test_singular_values_far_below_the_largest(case, backend):
    op, values = case
    positions = [1, 7, 31, 32, 33, 100, 128, 200, 255]
    found = ek.singular_values(op, positions, backend=backend)[0, 0]
    error = (found - values[[i - 1 for i in positions], : found.shape[-1]]).abs().amax()
    assert float(error) <= 1e-13 * (float(values.max()) or 1.0)


@pytest.mark.parametrize("backend", [*FAST, "reference"])
def test_a_state_that_erases_every_write(backend):
    """With one key at every step and steps of one a token erases what the last one wrote: `H` is zero but for rounding.

    Every count is 0. Entropy-ESS knows no scale, and that of rounding errors would be large: it is told as unresolved.
    """
    op = make(kda, g=0.0, beta=1.0, k=one_key)
    counts, certificate = ek.tolerance_ess(op, [1e-1, 1e-3, 1e-7], backend=backend, certificate=True)
    assert int(counts.abs().max()) == 0 and not bool(certificate.unresolved.any())
    entropy, doubt = ek.entropy_ess(op, backend=backend, certificate=True)
    assert bool((doubt.unresolved | (doubt.total == 0)).all()) and float(entropy.max()) == 0.0
    assert float(doubt.total.max()) < 1e-12


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("size", [0.3, 3.0])
def test_keys_that_make_the_state_grow(backend, size):
    """`beta |k|^2` beyond 2: the transition grows. Counts are right, or told as unresolved."""
    torch.manual_seed(3)
    shape = (1, 60, 2, 5)
    q, k, beta = unit(*shape), size * randn(*shape), 2 * rand(*shape[:3])
    k[:, :, 0] = unit(*shape)[:, :, 0]
    op = operators.delta_rule(q, k, beta)
    values = spectra(op).values
    tolerances = [1e-3, 1.0, 1e6]
    counts, certificate = ek.tolerance_ess(op, tolerances, backend=backend, certificate=True)
    for tau, count, unresolved in zip(tolerances, counts[:, 0], certificate.unresolved[:, 0]):
        right = count == (values > tau).sum(-1)
        assert bool((right | unresolved).all())
        # the head whose keys are unit vectors does not suffer
        assert bool(right[0].all()) and not bool(unresolved[0].any())


@pytest.mark.parametrize("backend", FAST)
def test_bad_data_marks_one_head(backend):
    torch.manual_seed(3)
    shape = (1, 70, 4, 5)
    q, k, g, beta = unit(1, 70, 2, 5), unit(1, 70, 2, 5), -0.1 * rand(*shape), rand(*shape[:3])
    clean = ek.tolerance_ess(operators.kda(q, k, g=g, beta=beta), 1e-2, backend=backend)
    for name, at, heads in (("beta", (0, 40, 2), [2]), ("g", (0, 0, 3, 1), [3]), ("k", (0, 69, 1, 0), [2, 3])):
        inputs = {"q": q, "k": k, "g": g, "beta": beta}
        inputs[name] = inputs[name].clone()
        inputs[name][at] = torch.nan
        found = ek.tolerance_ess(operators.kda(**inputs), 1e-2, backend=backend)
        for head in range(4):
            wanted = torch.full_like(clean[0, head], -1) if head in heads else clean[0, head]
            assert torch.equal(found[0, head], wanted), (name, head)


@pytest.mark.parametrize("reads_before", [False, True])
@pytest.mark.parametrize("replaces", [False, True])
def test_block_parts_without_matrices(reads_before, replaces):
    """The substitution against the recurrence of the same transitions as matrices."""
    torch.manual_seed(1)
    op = make(kda, beta=2.0) if replaces else make(rwkv7)
    tokens = replace(op.tokens(op.all_heads()), reads_before=reads_before)
    assert (tokens.update is None) == replaces
    matrices = replace(tokens, transition=tokens.matrices(), lookup=None, update=None)
    for c in (1, 2, 16, 64):
        found, wanted = block_parts(cut(tokens, c)), block_parts(cut(matrices, c))
        for name in ("X", "Y", "Z", "Phi"):
            assert_close(f"{name}, c = {c}", getattr(found, name), getattr(wanted, name), rtol=1e-12, atol=1e-13)
