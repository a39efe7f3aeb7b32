"""Modulation around events, and ESS at initialisation."""

import numpy as np
import pytest
import torch

import ess_kernels as ek
from ess_kernels.analysis import initialisation, modulation
from ess_kernels.analysis.featurizers import GLA, SA

LENGTH, REACH = 200, 4


def wavy(events, depth=0.3, rows=1):
    """Curves at positions 1 to L - 1 that fall by `depth` at each event, in some noise."""
    random = np.random.default_rng(0)
    curves = 10 + 0.5 * random.standard_normal((rows, LENGTH - 1))
    for row in range(rows):
        curves[row, np.array(events) - 1] *= 1 - depth
    return curves


EVENTS = [20, 50, 77, 110, 150]


def test_a_dip_is_found_where_it_is():
    found = modulation(wavy(EVENTS), EVENTS, REACH)
    assert found.events == 5 and found.lowest == 0
    assert found.offsets.tolist() == list(range(-REACH, REACH + 1))
    local = 1 - 0.3 / (4 * REACH + 1)
    assert found.depth == pytest.approx(1 - 0.7 / local, abs=0.05)
    assert found.z[REACH] < -5 and found.depth_z > 5
    assert np.abs(np.delete(found.z, REACH)).max() < 5


def test_aligned_is_the_mean_by_hand():
    curves = wavy(EVENTS)[0]
    rows = []
    for event in EVENTS:
        here = curves[event - 1 - REACH : event + REACH]
        rows.append(here / curves[event - 1 - 2 * REACH : event + 2 * REACH].mean() - 1)
    np.testing.assert_allclose(modulation(curves, EVENTS, REACH).aligned, np.mean(rows, 0), rtol=1e-12)


def test_random_events_are_within_chance():
    """Over many sets of random events, z has a mean near 0 and a spread near 1."""
    curves, random = wavy([5], depth=0.0), np.random.default_rng(1)
    z = [modulation(curves, random.integers(20, 180, 8), REACH, seed=n).z[REACH] for n in range(60)]
    assert abs(np.mean(z)) < 0.5 and 0.6 < np.std(z) < 1.5


def test_rows_heads_and_kinds_of_input():
    curves = wavy(EVENTS, rows=2)
    one = modulation(curves, EVENTS, REACH)
    same = modulation(torch.tensor(curves), [EVENTS, EVENTS], REACH)
    np.testing.assert_array_equal(one.aligned, same.aligned)
    assert one.events == same.events == 10
    heads = np.stack([curves * 0.25, curves * 0.75], 1)
    np.testing.assert_allclose(modulation(heads, EVENTS, REACH).aligned, one.aligned, rtol=1e-12)
    counts = torch.tensor(np.round(curves), dtype=torch.int64)
    assert modulation(counts, torch.tensor(EVENTS), REACH).lowest == 0
    only_first = modulation(curves, [EVENTS, []], REACH)
    np.testing.assert_array_equal(only_first.aligned, modulation(curves[:1], EVENTS, REACH).aligned)


def test_events_at_the_ends_and_in_bad_data_are_left_out():
    curves = wavy(EVENTS)
    expected = modulation(curves, EVENTS, REACH)
    with_ends = modulation(curves, [2 * REACH, *EVENTS, LENGTH - 2 * REACH], REACH)
    np.testing.assert_array_equal(expected.aligned, with_ends.aligned)
    assert with_ends.events == 5
    at_limit = modulation(curves, [2 * REACH + 1, LENGTH - 1 - 2 * REACH], REACH)
    assert at_limit.events == 2
    for bad in (np.nan, -1.0):
        spoilt = curves.copy()
        spoilt[0, 49] = bad
        assert modulation(spoilt, EVENTS, REACH).events == 4


def test_a_flat_curve_has_no_z():
    found = modulation(np.full(60, 3.0), [30], REACH)
    assert found.depth == 0 and np.isnan(found.depth_z)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((np.ones((1, 1, 1, 9)), [3]), r"ess: expected shape \[P\], \[B, P\] or \[B, H, P\], got \[1, 1, 1, 9\]"),
        ((np.ones(60), []), "events: expected at least one with 12 measured"),
        ((np.ones(60), [60 + 1]), r"events: expected positions in 1\.\.60, got 61"),
        ((np.ones(60), [0]), "events: expected at least 1, got 0"),
        ((np.ones((2, 60)), [[30]]), "events: expected a list for each of the 2 rows of ess, got 1"),
        ((np.zeros(60), [30]), "events: expected at least one with"),
        ((np.ones(60), [30], 0), "reach: expected at least 1, got 0"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        modulation(*arguments) if len(arguments) == 3 else modulation(*arguments, 6)


def test_initialisation_is_the_mean_over_fresh_mixers():
    state = torch.get_rng_state()
    found = initialisation(lambda size: GLA(16, 2, state=size), (2, 4), 64, 2, positions=7, atol=(1e-3, 1e-1))
    assert torch.equal(state, torch.get_rng_state())
    assert found.sizes == (2, 4) and found.seeds == (0, 1) and found.entropy.shape == (2, 2)
    torch.manual_seed(1)
    with torch.no_grad():
        op = GLA(16, 2, state=4).operator(torch.randn(1, 64, 16))
    places = range(8, 64, 8)
    assert found.entropy[1, 1] == pytest.approx(float(ek.entropy_ess(op, places).mean()), rel=1e-6)
    counted = float(ek.tolerance_ess(op, 1e-1, positions=places).double().mean())
    assert found.counts[1e-1][1, 1] == counted
    assert bool((found.counts[1e-3] >= found.counts[1e-1]).all())
    assert bool((found.entropy <= np.array([[2], [4]])).all())


def test_initialisation_of_attention_and_chosen_seeds():
    found = initialisation(lambda size: SA(16, 2, state=size), (4,), 16, [5], positions=100)
    assert found.seeds == (5,) and float(found.entropy[0, 0]) > 1
    for sizes, seeds in (((), 2), ((4,), [])):
        with pytest.raises(ValueError, match="sizes and seeds: expected at least one of each"):
            initialisation(lambda size: SA(16, 2, state=size), sizes, 16, seeds)


def test_a_bad_head_makes_means_no_numbers():
    """-1 is a mark, and no count to be averaged."""

    def build(size):
        mixer = SA(16, 2, state=size)
        with torch.no_grad():
            for parameter in mixer.parameters():
                parameter.view(-1)[-1] = torch.nan
        return mixer

    found = initialisation(build, (4,), 16, 1)
    assert np.isnan(found.entropy).all()
    assert all(np.isnan(counts).all() for counts in found.counts.values())
