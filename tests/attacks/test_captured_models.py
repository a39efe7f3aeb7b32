"""What an attack on capture found: operators that were verified and wrong, mixers left out, models left changed."""

import threading

import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention as sdpa

import ess_kernels as ek

LENGTH, WIDTH = 24, 16


class Attention(nn.Module):
    """Two heads, causal."""

    heads = 2

    def __init__(self):
        super().__init__()
        self.projected, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def split(self, x):
        return [y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in self.projected(x).chunk(3, -1)]

    def joined(self, y):
        return self.out(y.transpose(1, 2).flatten(2))

    def forward(self, x):
        return self.joined(sdpa(*self.split(x), is_causal=True))


class Model(nn.Module):
    def __init__(self, *mixers):
        super().__init__()
        self.words, self.mixers = nn.Embedding(50, WIDTH), nn.ModuleList(mixers)
        self.head = nn.Linear(WIDTH, 50)
        self.eval()

    def forward(self, input_ids):
        x = self.words(input_ids)
        for mixer in self.mixers:
            x = x + mixer(x)
        return self.head(x)


def causal(scores):
    return scores.masked_fill(torch.ones(scores.shape[-2:]).triu(1).bool(), -torch.inf).softmax(-1)


def words(rows=2, length=LENGTH):
    return torch.randint(0, 50, (rows, length), generator=torch.Generator().manual_seed(1))


def entropies(T):
    """Entropy-ESS of `T [..., L, L]` at every position, by the definition."""
    rows = []
    for i in range(1, T.shape[-1]):
        p = torch.linalg.svdvals(T[..., i:, :i].double())
        p = p / p.sum(-1, keepdim=True)
        rows.append((-(p * p.clamp_min(1e-300).log()).sum(-1)).exp())
    return torch.stack(rows, -1)


@pytest.fixture(autouse=True)
def same_weights_every_time():
    torch.manual_seed(0)


def test_equal_tokens_prove_nothing():
    """With the same value at all tokens every operator whose rows add up to 1 gives the same output."""

    class Bidirectional(Attention):
        def forward(self, x):
            everything = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool)
            return self.joined(sdpa(*self.split(x), attn_mask=everything))

    with pytest.raises(RuntimeError, match=r"bidirectional|not causal"):
        ek.analyze(Model(Bidirectional()), torch.full((1, LENGTH), 5))


@pytest.mark.parametrize("change", ["equal tokens", "values of zero", "a small head"])
def test_an_argument_that_no_one_sees(change):
    """A slope that an attention function has of its own: softmax attention without it is another operator."""
    transformers = pytest.importorskip("transformers")
    from ess_kernels.testing.tiny_models import tiny_model

    def sloped(module, query, key, value, attention_mask, scaling=None, **kwargs):
        heads = value.repeat_interleave(query.shape[1] // value.shape[1], 1)
        keys = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
        place = torch.arange(query.shape[2])
        slope = torch.zeros(query.shape[1])
        slope[-1 if change == "a small head" else slice(None)] = 0.3
        weights = causal(query @ keys.mT * scaling - slope[:, None, None] * (place[:, None] - place))
        return (weights @ heads).transpose(1, 2), weights

    transformers.AttentionInterface.register("sloped", sloped)
    model, given = tiny_model("llama"), words()
    model.config._attn_implementation = "sloped"
    for layer in model.model.layers:
        projection = layer.self_attn.v_proj.weight.data
        if change == "values of zero":
            projection.zero_()
        elif change == "a small head":
            projection[-layer.self_attn.head_dim :] *= 1e-4
    if change == "equal tokens":
        given = torch.full((1, LENGTH), 5)
    weights = {}
    layer = model.model.layers[0].self_attn
    handle = layer.register_forward_hook(lambda module, args, output: weights.update(T=output[1]))
    try:
        found = ek.analyze(model, given, metrics=["entropy"]).layers["model.layers.0.self_attn"]
    finally:
        handle.remove()
        transformers.AttentionInterface._global_mapping.pop("sloped", None)
    assert found.route == "registry, one-hot"
    assert torch.allclose(found.entropy, entropies(weights["T"].detach()), rtol=1e-3)


@pytest.mark.parametrize("heads_first", [True, False])
@pytest.mark.parametrize("heads", [2, 4])
def test_batch_and_heads_in_one_axis(heads_first, heads):
    """In either order: each row and head has the numbers that it has alone. Also where there are as many of one."""

    class Joined(Attention):
        def forward(self, x):
            rows = x.shape[0]
            q, k, v = self.split(x)
            if heads_first:
                q, k, v = (y.transpose(0, 1) for y in (q, k, v))
            q, k, v = (y.reshape(rows * self.heads, *y.shape[2:]) for y in (q, k, v))
            y = causal(3 * q @ k.mT) @ v
            order = (self.heads, rows) if heads_first else (rows, self.heads)
            y = y.unflatten(0, order)
            return self.joined(y.transpose(0, 1) if heads_first else y)

    mixer = Joined()
    mixer.heads = heads
    model = Model(mixer)
    together = ek.analyze(model, words(), metrics=["entropy"]).layers["mixers.0"].entropy
    assert together.shape == (2, heads, LENGTH - 1)
    for row in range(2):
        alone = ek.analyze(model, words()[row : row + 1], metrics=["entropy"]).layers["mixers.0"].entropy
        assert torch.allclose(together[row], alone[0], rtol=1e-4)


def over_heads(self, x):
    """Attention over heads, of which there are as many as tokens."""
    return self.joined(sdpa(*[y.transpose(1, 2) for y in self.split(x)], is_causal=True).transpose(1, 2))


def over_rows(self, x):
    """Attention over the rows of the batch, of which there are as many as tokens."""
    q, k, v = (y.transpose(0, 2) for y in self.split(x))
    return self.joined(sdpa(q, k, v, is_causal=True).transpose(0, 2))


@pytest.mark.parametrize(("forward", "rows", "length"), [(over_heads, 2, 8), (over_rows, 12, 12)])
def test_another_axis_of_the_same_size(forward, rows, length):
    other = type("Other", (Attention,), {"forward": forward, "heads": 8})()
    found = ek.analyze(Model(Attention(), other), words(rows, length), metrics=["entropy"])
    assert list(found.layers) == ["mixers.0"]
    assert "mixers.1" in found.skipped


def test_two_softmaxes_in_a_row():
    class Twice(Attention):
        def forward(self, x):
            q, k, v = self.split(x)
            weights = causal(q @ k.mT)
            return self.joined((weights @ causal(k @ q.mT)) @ v)

    found = ek.analyze(Model(Attention(), Twice()), words(), metrics=["entropy"])
    assert list(found.layers) == ["mixers.0"]
    assert "two softmaxes" in found.skipped["mixers.1"]


def test_several_calls_in_one_module_are_told():
    class Differential(Attention):
        def forward(self, x):
            q, k, v = self.split(x)
            return self.joined(sdpa(q, k, v, is_causal=True) - 0.5 * sdpa(k, q, v, is_causal=True))

    found = ek.analyze(Model(Differential()), words(), metrics=["entropy"])
    assert list(found.layers) == ["mixers.0", "mixers.0[1]"]
    assert any("several calls" in note for note in found.notes)


def test_a_reversed_mixer_is_not_causal():
    class Reversed(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Attention()

        def forward(self, x):
            return self.inner(x.flip(1)).flip(1)

    class Inside(Attention):
        def forward(self, x):
            return super().forward(x.flip(1)).flip(1)

    found = ek.analyze(Model(Attention(), Reversed(), Inside()), words(), metrics=["entropy"])
    assert list(found.layers) == ["mixers.0"]
    assert "in another order" in found.skipped["mixers.1.inner"]
    assert "bidirectional" in found.skipped["mixers.2"]


def test_another_model_that_runs_meanwhile():
    """A teacher in a hook, in this thread or in another, is no part of the model."""
    pytest.importorskip("transformers")
    from ess_kernels.testing.tiny_models import tiny_model

    student, teacher = tiny_model("llama"), tiny_model("llama", seed=1)

    def run(*_):
        with torch.no_grad():
            teacher(words())

    def in_a_thread(*_):
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()

    expected = list(ek.analyze(student, words(), metrics=["entropy"]).layers)
    for hook in (run, in_a_thread):
        handle = student.model.layers[0].mlp.register_forward_hook(hook)
        assert list(ek.analyze(student, words(), metrics=["entropy"]).layers) == expected
        handle.remove()


def test_two_analyses_at_once():
    transformers = pytest.importorskip("transformers")
    from ess_kernels.testing.tiny_models import tiny_model

    lookup = transformers.modeling_utils.AttentionInterface.get_interface
    models = [tiny_model("llama", seed=seed) for seed in (0, 1)]
    expected = [ek.analyze(model, words(), metrics=["entropy"]) for model in models]
    found = [None, None]

    def analyze(number):
        found[number] = ek.analyze(models[number], words(), metrics=["entropy"])

    threads = [threading.Thread(target=analyze, args=(number,)) for number in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one, other in zip(found, expected, strict=True):
        assert list(one.layers) == list(other.layers)
        for name, layer in one.layers.items():
            assert torch.equal(layer.entropy, other.layers[name].entropy)
    assert transformers.modeling_utils.AttentionInterface.get_interface is lookup


class Extra(Attention):
    """Attention, and beside it something that mixes as well."""

    def __init__(self, beside):
        super().__init__()
        self.beside = beside

    def forward(self, x):
        return super().forward(x) + self.beside(x)


class Recurrence(nn.Module):
    def forward(self, x):
        return torch.tanh(x.cumsum(1))


class Late(nn.Module):
    """Every token hears of the first one alone."""

    def forward(self, x):
        return x + x[:, :1]


class NoLinear(nn.Identity):
    """A plain class by its parent."""

    def forward(self, x):
        return x.cumsum(1)


@pytest.mark.parametrize(
    ("mixer", "name"),
    [
        (lambda: Extra(Recurrence()), "mixers.1.beside"),
        (Late, "mixers.1"),
        (NoLinear, "mixers.1"),
    ],
)
def test_nothing_is_left_out(mixer, name):
    found = ek.analyze(Model(Attention(), mixer()), words(), metrics=["entropy"])
    assert "unknown mixer" in found.skipped[name]


def test_a_model_that_mixes_by_itself():
    class Mixing(Model):
        def forward(self, input_ids):
            x = self.words(input_ids)
            return self.head(self.mixers[0](x) + x.cumsum(1))

    found = ek.analyze(Mixing(Attention()), words(), metrics=["entropy"])
    assert list(found.layers) == ["mixers.0"]
    assert "unknown mixer" in found.skipped[""]


def test_what_cannot_be_tried_is_told():
    """After numbers that are not finite nothing shows whether a module mixes."""
    broken = nn.Linear(WIDTH, WIDTH)
    broken.bias.data.fill_(torch.nan)
    found = ek.analyze(Model(Attention(), broken, Recurrence()), words(), metrics=["entropy"])
    assert "could not be tried" in found.skipped["mixers.2"]


def test_weights_that_are_merged_for_evaluation():
    """A layer that merges an update into its weights in `eval`, and takes it out in `train`."""

    class Merging(nn.Linear):
        merged = False

        def train(self, mode=True):
            super().train(mode)
            if mode == self.merged:
                self.weight.data += -0.5 if mode else 0.5
                self.merged = not mode
            return self

    model = Model(Attention(), Merging(WIDTH, WIDTH))
    model.train()
    before = [parameter.clone() for parameter in model.parameters()]
    ek.analyze(model, words(), metrics=["entropy"])
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert all(module.training for module in model.modules())
    assert not model.mixers[1].merged


def test_random_numbers_and_inputs_stay_as_they_were():
    class Noisy(Model):
        def forward(self, input_ids):
            input_ids[input_ids == 7] = 3
            return super().forward(input_ids) + torch.rand(1)

    model, given = Noisy(Attention()), words()
    state = torch.get_rng_state()
    ek.analyze(model, given, metrics=["entropy"])
    assert torch.equal(given, words())
    assert torch.equal(torch.get_rng_state(), state)
