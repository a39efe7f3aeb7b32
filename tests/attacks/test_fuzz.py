"""The fuzzer: a few seconds of it with a fixed seed, its oracle, and whether it sees faults that are planted."""

import contextlib
import io
import json

import numpy as np
import pytest
import torch

from ess_kernels import backends
from ess_kernels.backends import TorchBackend
from ess_kernels.backends.native import NativeBackend
from ess_kernels.testing.__main__ import main
from ess_kernels.testing.fuzz import fuzz
from ess_kernels.testing.fuzz.case import HEAD, STATE, TOKEN, Case
from ess_kernels.testing.fuzz.code import program
from ess_kernels.testing.fuzz.dice import Dice
from ess_kernels.testing.fuzz.exact import exact
from ess_kernels.testing.fuzz.generate import make_case
from ess_kernels.testing.fuzz.judge import judge
from ess_kernels.testing.fuzz.oracle import Truth, count_above
from ess_kernels.testing.fuzz.question import Question

ENOUGH = 60.0


def run(cases=12, seed=0, backend="torch"):
    return fuzz(ENOUGH, seed, [backend], most_cases=cases, shrink_seconds=3)


@pytest.fixture
def planted(monkeypatch):
    """`planted(change)` lets `change(counts)` alter what the engine in PyTorch counts, `Counts` of `[N, M, P]`."""

    def plant(change):
        honest = TorchBackend.tolerance_ess

        def tolerance_ess(self, op, positions, atol, rtol):
            return change(honest(self, op, positions, atol, rtol))

        monkeypatch.setattr(TorchBackend, "tolerance_ess", tolerance_ess)

    return plant


# --- the engine -------------------------------------------------------------------------------------------------------


SEEDS = [("torch", 0), ("torch", 1), ("torch", 4), ("native", 0), ("native", 1), ("native", 4), ("reference", 2)]


@pytest.mark.parametrize("backend, seed", SEEDS)
def test_nothing_fails(backend, seed):
    if backend == "native" and (reason := NativeBackend().unavailable()):
        pytest.skip(f"native library: {reason}")
    report = run(seed=seed, backend=backend)
    assert report.total("tried") > 2000 and report.total("entropies tried") > 100
    assert not report.failed, report.failures(programs=1)


def test_entries_that_underflow_are_left_undecided():
    """`q_4 exp(g_2 + g_3 + g_4) k_1 = 1e-333` is not zero: the engine's units hold it, the oracle's numbers do not."""
    q, k, g = (
        torch.tensor(x, dtype=torch.float64).view(1, 4, 1, 1)
        for x in ([1e-30, 0.0, 0.0, 7e-43], [1e-30, 0.0, 0.0, 1e-30], [-300.0, -300.0, -300.0, 0.0])
    )
    case = Case("gla", "tiny", {"q": q, "k": k, "g": g})
    truth = Truth(case, [1, 2, 3])
    assert bool(truth.underflows.all())
    for question in (Question("rtol", "torch", [1, 2, 3], tolerances=[0.4]), Question("entropy", "torch", [1, 2, 3])):
        verdict = judge(case, truth, question)
        assert not verdict.failures
        assert 3 in (
            verdict.numbers.get("undecided by the oracle"),
            verdict.numbers.get("entropies undecided by the oracle"),
        )


# --- planted faults ---------------------------------------------------------------------------------------------------


def test_a_miscount_is_silent_and_shrinks_to_a_program(planted):
    def one_too_few(found):
        few = found.counts - (found.counts == 3).long()
        return found._replace(counts=few, unresolved=torch.zeros_like(found.unresolved))

    planted(one_too_few)
    report = run(cases=8)
    assert report.failed and report.total("silent") > 10
    assert report.total("wrong") >= report.total("silent")
    smallest = min(report.smallest.values(), key=lambda failure: failure.case.numel)
    assert smallest.what == "silent" and smallest.case.size(HEAD) == 1 and smallest.case.size(TOKEN) <= 8
    source = program(smallest)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(source, {})
    assert "[[2]]" in printed.getvalue() and "right: 3" in source
    json.dumps(report.as_json())


def test_a_warned_miscount_is_wrong_but_not_silent(planted):
    planted(lambda found: found._replace(counts=found.counts // 2, unresolved=torch.ones_like(found.unresolved)))
    report = run(cases=4)
    assert report.total("wrong") > 10 and report.total("silent") == 0 and not report.failed
    assert report.total("well-conditioned and unresolved") == report.total("well-conditioned") > 0


def test_a_width_excuses_only_what_lies_inside(planted):
    """Every count one too few, with a band of a tenth: most of them have no singular value in it."""
    planted(lambda found: found._replace(counts=found.counts.clamp_min(1) - 1, width=found.width * 0 + 0.1))
    report = run(cases=4)
    assert 0 < report.total("silent") < report.total("wrong")


def test_counts_above_the_cap_and_refusals_are_reported(planted):
    planted(lambda found: found._replace(counts=torch.where(found.counts > 0, 1000, -1)))
    report = run(cases=3)
    assert report.total("above the cap") > 0 and report.total("refused") > 0


def test_an_error_is_a_failure(monkeypatch):
    def broken(*arguments):
        raise ZeroDivisionError("planted")

    monkeypatch.setattr(TorchBackend, "entropy_ess", broken)
    report = run(cases=3)
    assert report.total("raised") == 3
    assert any("ZeroDivisionError: planted" in failure.words for failure in report.smallest.values())


def test_the_command_ends_with_its_figures(capsys, tmp_path):
    status = main(
        ["fuzz", "--minutes", "0.01", "--seed", "2", "--backend", "torch", "--json", str(tmp_path / "f.json")]
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "seed 2" and lines[-1].startswith("seed 2, 0 min, ") and "silent" in lines[-1]
    assert status == 0 and json.loads((tmp_path / "f.json").read_text())["line"] == lines[-1]


def test_a_backend_that_does_not_exist_is_an_error_at_once():
    with pytest.raises(SystemExit):
        main(["fuzz", "--backend", "tritn"])
    assert "torch" in {status.name for status in backends.describe()}


# --- the cases and the oracle -----------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_cases():
    for number in range(30):
        one, two = (make_case(Dice(f"7/{number}")) for _ in range(2))
        assert (one.family, one.kind, one.options) == (two.family, two.kind, two.options)
        assert all(torch.equal(one.inputs[name], two.inputs[name]) for name in one.inputs)


def test_every_case_is_the_matrix_that_its_operator_makes():
    """Whole, cut along each axis, and in another unit."""
    seen = set()
    for number in range(80):
        dice = Dice(f"8/{number}")
        case = make_case(dice, small=True)
        for one in (
            case,
            case.scaled(40),
            *(case.take(x, torch.arange(case.size(x))[::2]) for x in (HEAD, TOKEN, STATE)),
        ):
            found = exact(one)
            op = one.operator()
            T = op.dense_heads(op.all_heads()).tril(-1).numpy()
            finite = np.isfinite(found.magnitude).all((1, 2))
            error = np.abs(found.T.high[finite] - T[finite])
            largest = np.abs(found.magnitude[finite]).max((1, 2), initial=1e-300)[:, None, None]
            assert (error <= 1e-12 * largest).all(), f"{one.family}, {one.kind}: {(error / largest).max()}"
            assert op.state_size == one.state_size
        seen.add(case.family)
    assert len(seen) >= 8


def test_what_cancels_is_seen_to_the_last_digit():
    """Rank 4 out of 8 states, and the terms are 2^40 times as large: float64 sees noise where the oracle sees zero."""
    dice = Dice("cancellation")
    a, b = dice.normal(1, 30, 1, 4), dice.normal(1, 30, 1, 4)
    whole = Case("linear_attention", "", {"q": torch.cat([a, a], -1), "k": torch.cat([b, -b], -1)}, {"scale": 1.0})
    truth = Truth(whole, [15])
    assert float(truth.values.max()) == 0.0
    k = torch.cat([b, -b * (1 - 2.0**-40)], -1)
    truth = Truth(Case("linear_attention", "", {"q": torch.cat([a, a], -1), "k": k}, {"scale": 1.0}), [15])
    s = truth.values[0, 0]
    assert float(s[4] / s[3]) < 1e-14 and float(truth.error[0, 0]) < 1e-12 * float(s[0])
    assert truth.precisely(0, 0, 1e-8 * float(s[0]), 1e-8 * float(s[0])) == (4, 4)


@pytest.mark.parametrize("shape", [(1, 1), (1, 6), (5, 3), (12, 12), (7, 20)])
def test_counting_in_the_longest_float(shape):
    H = Dice(str(shape)).normal(*shape)
    s = torch.linalg.svdvals(H)
    for beside in (1e-13, -1e-13):
        thresholds = (s * (1 + beside)).tolist()
        wanted = [int((s > threshold).sum()) for threshold in thresholds]
        assert count_above(H.numpy().astype(np.longdouble), thresholds) == wanted
    zero = np.zeros(shape, dtype=np.longdouble)
    assert count_above(zero, [0.0, 1e-300]) == [0, 0]
