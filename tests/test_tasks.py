"""The synthetic tasks keep their rules, whatever their sizes, and can be drawn again."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ess_kernels.analysis.tasks import MQAR, NOT_ASKED, Compression, SelectiveCopying

quickly = settings(deadline=None, max_examples=25)


def generator(seed):
    return torch.Generator().manual_seed(seed)


@st.composite
def recall_tasks(draw):
    kv, asks = draw(st.integers(1, 12)), draw(st.integers(1, 3))
    length = max(4, 2 + asks) * kv + draw(st.integers(0, 20))
    return MQAR(length, kv, vocab=2 * kv + 2 + draw(st.integers(0, 30)), asks=asks)


@quickly
@given(recall_tasks(), st.integers(0, 1000))
def test_recall(task, seed):
    drawn = task.draw(3, generator(seed))
    assert drawn.tokens.shape == drawn.targets.shape == (3, task.length)
    for tokens, targets in zip(drawn.tokens.tolist(), drawn.targets.tolist()):
        pairs = dict(zip(tokens[0 : 2 * task.kv : 2], tokens[1 : 2 * task.kv : 2]))
        assert len(pairs) == task.kv  # the keys differ
        assert all(0 < key < task.vocab // 2 for key in pairs)
        assert all(task.vocab // 2 <= value < task.vocab for value in pairs.values())
        asked = [i for i, target in enumerate(targets) if target != NOT_ASKED]
        assert all(i >= 2 * task.kv for i in asked)
        assert sorted(tokens[i] for i in asked) == sorted(list(pairs) * task.asks)
        assert all(targets[i] == pairs[tokens[i]] for i in asked)
        rest = set(range(2 * task.kv, task.length)) - set(asked)
        assert all(tokens[i] == 0 for i in rest)


@quickly
@given(st.integers(1, 12), st.integers(2, 20), st.integers(3, 40), st.integers(0, 1000))
def test_selective_copying(to_copy, more, vocab, seed):
    task = SelectiveCopying(2 * to_copy + more, to_copy, vocab)
    drawn = task.draw(3, generator(seed))
    for tokens, targets in zip(drawn.tokens.tolist(), drawn.targets.tolist()):
        mark = tokens.index(1)
        assert tokens.count(1) == 1 and mark == task.length - to_copy - 1
        content = [token for token in tokens[:mark] if token]
        assert len(content) == to_copy and all(2 <= token < vocab for token in content)
        assert not any(tokens[mark + 1 :])  # the answers are not shown
        assert targets == [NOT_ASKED] * (mark + 1) + content


@quickly
@given(st.integers(2, 40), st.integers(2, 40), st.integers(0, 1000))
def test_compression(length, vocab, seed):
    drawn = Compression(length, vocab).draw(3, generator(seed))
    assert bool((drawn.tokens[:, -1] == 0).all()) and bool((drawn.targets[:, -1] == NOT_ASKED).all())
    content = drawn.tokens[:, :-1]
    assert bool(((content > 0) & (content < vocab)).all())
    assert torch.equal(drawn.targets[:, :-1], content)


@pytest.mark.parametrize("task", [MQAR(16, 4, 20), SelectiveCopying(16, 4, 20), Compression(16, 20)])
def test_draws_are_repeatable_and_differ(task):
    first, again, other = (task.draw(8, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first.tokens, again.tokens) and torch.equal(first.targets, again.targets)
    assert not torch.equal(first.tokens, other.tokens)
    assert torch.equal(first.asked, first.targets != -100)
    assert first.tokens.dtype == first.targets.dtype == torch.int64


def test_every_place_and_value_occurs():
    """A draw that favoured some places or values would change how hard a task is."""
    drawn = MQAR(16, 2, 12).draw(2000, generator(0))
    places = drawn.asked.double().mean(0)
    assert bool((places[:4] == 0).all())
    assert float((places[4:] - 2 / 12).abs().max()) < 0.05
    values = torch.bincount(drawn.tokens[:, 1], minlength=12)[6:] / 2000
    assert float((values - 1 / 6).abs().max()) < 0.05


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: MQAR(15, 4, 20), "length: expected at least .* = 16 for kv=4, got 15"),
        (lambda: MQAR(16, 4, 20, asks=3), "length: expected at least .* = 20"),
        (lambda: MQAR(16, 4, 9), "vocab: expected at least 2 kv . 2 = 10 .*, got 9"),
        (lambda: MQAR(16, 0, 9), "kv: expected at least 1, got 0"),
        (lambda: MQAR(16, 4, 20, asks=0), "asks: expected at least 1, got 0"),
        (lambda: SelectiveCopying(9, 4, 20), "length: expected more than 2 to_copy . 1 = 9 .*, got 9"),
        (lambda: SelectiveCopying(12, 4, 2), "vocab: expected at least 3, got 2"),
        (lambda: Compression(1, 5), "length: expected at least 2, got 1"),
    ],
)
def test_sizes_that_do_not_fit(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_the_smallest_sizes_fit():
    MQAR(16, 4, 10).draw(1, generator(0))
    SelectiveCopying(10, 4, 3).draw(1, generator(0))
    Compression(2, 2).draw(1, generator(0))


def test_a_size_that_is_no_integer():
    with pytest.raises(TypeError, match="kv: expected an integer"):
        MQAR(16, 4.0, 20)
