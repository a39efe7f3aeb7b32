"""Functions of flash-linear-attention that layers call by name: seen, and their operators are the right ones.

Their kernels do not run without a GPU. So a layer of the tests' own calls functions that have the kernels' names and
signatures and fla's references in PyTorch inside; real layers run where there is a GPU.
"""

import importlib
import inspect
import itertools
import sys
import types

import fla_references as reference
import pytest
import torch
from fla_cases import CASES, NOT_IN_CLOSED_FORMS, RETIRED, B, H, K, T, V, gate, gentle, product_arguments, qkv, x
from torch import nn

from ess_kernels.capture import capturing, verify
from ess_kernels.capture.fla_functions import FLA
from ess_kernels.capture.idle import FUNCTION_IDLE
from ess_kernels.capture.one_hot import read_off

pytest.importorskip("fla")


def kernel(name):
    return getattr(importlib.import_module(f"fla.ops.{CASES[name][0]}"), name)


@pytest.fixture
def layer(monkeypatch):
    """Makes a module whose Python module has a function of the given name, as layers of fla have them."""

    def make(name, function, signature=None):
        namespace = types.ModuleType("layers_of_the_test")
        monkeypatch.setitem(sys.modules, namespace.__name__, namespace)
        function.__signature__ = inspect.signature(kernel(name)) if signature is None else signature
        setattr(namespace, name, function)

        class Layer(nn.Module):
            def forward(self, **arguments):
                return getattr(namespace, name)(**arguments)

        Layer.__module__ = namespace.__name__
        return Layer()

    return make


def call_of(name, answer):
    """A function with the kernel's signature, that returns what the reference gives."""

    def function(*args, **kwargs):
        given = inspect.signature(function).bind(*args, **kwargs)
        given.apply_defaults()
        given = {n: v for n, v in given.arguments.items() if n not in ("initial_state", "output_final_state", "kwargs")}
        found = answer(**given, **kwargs_of(function, kwargs))
        found = found[0] if isinstance(found, tuple) else found
        return found, None

    return function


def kwargs_of(function, kwargs):
    return {n: v for n, v in kwargs.items() if n not in inspect.signature(function).parameters}


def seen(module, shape=(B, T), attention_mask=None, **arguments):
    calls = []
    with capturing(module, calls.append, shape=shape, attention_mask=attention_mask) as capture, torch.no_grad():
        output = module(**arguments)
    assert not capture.refused, capture.refused
    (call,) = calls
    return call, output[0] if isinstance(output, tuple) else output


@pytest.mark.parametrize("name", CASES)
def test_the_closed_form_is_what_the_function_computes(name, layer):
    torch.manual_seed(0)
    _, answer, make = CASES[name]
    module = layer(name, call_of(name, answer))
    arguments = make()
    call, output = seen(module, **arguments)
    found = verify(call)
    assert found.route == "global", found.remark
    assert found.capture_error < (1e-4 if "precond_gated" in name else 1e-10)
    if call.one_hot is None:  # a token has several values, so that T is not square
        assert name == "chunk_gated_delta_product" and found.operator.block == (1, 3)
    else:
        torch.testing.assert_close(
            read_off(call), found.operator.dense(), rtol=0, atol=(1e-4 if "precond_gated" in name else 1e-8)
        )
    assert torch.equal(output, module(**arguments)[0])


@pytest.mark.parametrize("name", CASES)
def test_every_argument_of_the_kernel_is_known(name):
    """A new argument upstream would otherwise be refused, or a renamed one forgotten."""
    known = FLA[name]
    taken = inspect.signature(known.constructor).parameters
    own = {known.value, known.value_gate, known.skip, known.gate, *known.states, *known.renamed, *known.idle}
    parameters = inspect.signature(kernel(name)).parameters.values()
    for parameter in parameters:
        if parameter.kind is not parameter.VAR_KEYWORD:
            assert parameter.name in {*own, *taken, *FUNCTION_IDLE, *NOT_IN_CLOSED_FORMS}, parameter.name
    names = {parameter.name for parameter in parameters}
    assert known.value in names
    needed = {p.name for p in taken.values() if p.default is p.empty and p.kind is not p.VAR_KEYWORD}
    back = {theirs: ours for ours, theirs in known.renamed.items()}
    missing = {n for n in needed if n not in names and back.get(n) not in names}
    assert not missing, missing


def test_every_entry_is_tested():
    assert {*CASES, *RETIRED} == FLA.keys()


@pytest.mark.parametrize("name", RETIRED)
def test_functions_that_are_no_more_have_the_entry_of_their_equals(name):
    assert FLA[name] is FLA[f"chunk_{RETIRED[name]}"]
    assert callable(getattr(importlib.import_module(f"fla.ops.{RETIRED[name]}"), name))


def test_unknown_mathematics_is_read_off(layer):
    """A decay of every value channel is known to no closed form; where it is the same for all, T exists."""

    def with_value_gates(q, k, v, gk, gv, **_):
        gates = gk + gv[..., :1]
        return reference.gla(q, k, v, gates)

    module = layer("fused_recurrent_gla", call_of("fused_recurrent_gla", with_value_gates))
    call, _ = seen(module, **qkv(gk=gate(H, K), gv=gate(H)[..., None].expand(B, T, H, V)))
    found = verify(call)
    assert found.route == "global, one-hot" and "gv is given" in found.remark
    assert found.capture_error < 1e-12


def test_another_number_beside_the_row_sums_is_read_off(layer):
    module = layer("parallel_rebased", call_of("parallel_rebased", reference.rebased))
    call, _ = seen(module, **gentle())
    assert "eps=1e-05" in (found := verify(call)).remark and found.capture_error < 1e-12


def test_a_state_is_refused(layer):
    module = layer("chunk_gla", call_of("chunk_gla", reference.gla))
    with capturing(module, lambda call: None, shape=(B, T)) as capture:
        module(**qkv(g=gate(H, K), initial_state=x(B, H, K, V)))
    assert capture.refused == {"": "initial_state is given: starts from a state, which is no part of T"}


MASKS = {
    "left": torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1, 1], [1] * 9]),
    "right": torch.tensor([[1] * 9, [1, 1, 1, 1, 1, 0, 0, 0, 0]]),
    "none": None,
}


@pytest.mark.parametrize("side", MASKS)
@pytest.mark.parametrize("name", ["chunk_gla", "fused_recurrent_hgrn", "chunk_gated_delta_rule"])
def test_a_padded_batch_that_a_layer_packs_is_seen_in_its_rows(name, side, layer):
    _, answer, make = CASES[name]

    def packed(cu_seqlens, **arguments):
        bounds = cu_seqlens.tolist()
        pieces = [
            answer(**{n: y[:, a:b] if isinstance(y, torch.Tensor) and y.dim() > 2 else y for n, y in arguments.items()})
            for a, b in itertools.pairwise(bounds)
        ]
        return torch.cat([piece[0] if isinstance(piece, tuple) else piece for piece in pieces], 1)

    mask = MASKS[side]
    tokens = torch.ones(B, T, dtype=torch.bool) if mask is None else mask.bool()
    arguments = {
        n: y[tokens][None] if isinstance(y, torch.Tensor) and y.shape[:2] == (B, T) else y for n, y in make().items()
    }
    boundaries = torch.cat([torch.zeros(1, dtype=torch.long), tokens.sum(1).cumsum(0)])
    # chunk_hgrn takes no boundaries, the other one does
    module = layer(name, call_of(name, packed))
    call, output = seen(module, attention_mask=mask, cu_seqlens=boundaries, **arguments)
    assert call.values.shape[:3] == (B, K if "hgrn" in name else H, T)
    found = verify(call)
    assert found.route == "global" and found.capture_error < 1e-12
    assert found.operator.batch_shape == call.output.shape[:2] and found.operator.length == T
    kept = call.output.transpose(1, 2)[tokens]
    assert torch.equal(kept.reshape(output[0].shape), output[0])


def test_sequences_that_the_user_has_packed_stay_in_their_row(layer):
    def packed(q, k, v, g, cu_seqlens, **_):
        a = int(cu_seqlens[1])
        pieces = [reference.gla(*(y[:, s] for y in (q, k, v, g))) for s in (slice(0, a), slice(a, None))]
        return torch.cat([piece[0] if isinstance(piece, tuple) else piece for piece in pieces], 1)

    module = layer("chunk_gla", call_of("chunk_gla", packed))
    arguments = {n: y[:1] for n, y in qkv(g=gate(H, K)).items()}
    call, _ = seen(module, shape=(1, T), cu_seqlens=torch.tensor([0, 4, T]), **arguments)
    found = verify(call)
    assert found.route == "global" and found.capture_error < 1e-12
    assert not found.operator.dense()[:, :, 4:, :4].any()


@pytest.mark.parametrize("with_gates", [True, False])
@pytest.mark.parametrize("mask", [None, MASKS["left"]], ids=["all", "padded"])
def test_a_product_of_rules_by_steps_of_the_gated_rule(layer, with_gates, mask):
    """As the layer does it for short sequences, packed where there is a mask."""
    n = 2
    given = product_arguments(n, g=gate(H) if with_gates else None)
    q = torch.zeros(B, T, n, H, K, dtype=torch.float64)
    q[:, :, -1] = given["q"]
    g = torch.zeros(B, T, n, H, dtype=torch.float64)
    g[:, :, 0] = given["g"] if with_gates else 0
    arguments = {name: given[name].unflatten(1, (T, n)) for name in ("k", "v", "beta")} | {"q": q, "g": g}
    if not with_gates:
        arguments["g"] = None
    boundaries = None
    if mask is not None:
        tokens = mask.bool()
        boundaries = n * torch.cat([torch.zeros(1, dtype=torch.long), tokens.sum(1).cumsum(0)])
        arguments = {name: y if y is None else y[tokens][None] for name, y in arguments.items()}
    arguments = {name: y if y is None else y.flatten(1, 2) for name, y in arguments.items()}

    def rule(cu_seqlens=None, **rest):
        bounds = [0, rest["q"].shape[1]] if cu_seqlens is None else cu_seqlens.tolist()
        pieces = [
            reference.gated_delta_rule(**{m: y[:, a:b] if isinstance(y, torch.Tensor) else y for m, y in rest.items()})
            for a, b in itertools.pairwise(bounds)
        ]
        return torch.cat([piece[0] if isinstance(piece, tuple) else piece for piece in pieces], 1)

    name = "fused_recurrent_gated_delta_rule"
    call, _ = seen(layer(name, call_of(name, rule)), attention_mask=mask, cu_seqlens=boundaries, **arguments)
    found = verify(call)
    assert call.mixer == "gated_delta_product" and found.route == "global" and found.capture_error < 1e-12
    assert found.operator.length == T and found.operator.block == (1, n)


def test_heads_before_the_time_as_older_versions_have_them(layer):
    def head_first(q, k, v, g, head_first=False, **_):
        assert head_first
        found = reference.gla(*reference.turned(q, k, v, g))
        return reference.turned(found[0] if isinstance(found, tuple) else found)[0]

    parameters = [inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY) for n in ("q", "k", "v", "g", "head_first")]
    module = layer("chunk_gla", call_of("chunk_gla", head_first), inspect.Signature(parameters))
    arguments = qkv(g=gate(H, K))
    arguments = dict(zip(arguments, reference.turned(*arguments.values())))
    call, _ = seen(module, head_first=True, **arguments)
    found = verify(call)
    assert found.route == "global" and found.capture_error < 1e-12


HEADS = {"hidden_size": 128, "num_heads": 2, "layer_idx": 0}
LAYERS = {
    "ABCAttention": HEADS,
    "Comba": HEADS,
    "DeltaNet": HEADS,
    "GatedDeltaNet": HEADS,
    "GatedDeltaNet2": HEADS,
    "GatedLinearAttention": HEADS,
    "GatedSlotAttention": HEADS,
    "GatedDeltaProduct": HEADS,
    "HGRNAttention": {"hidden_size": 128, "layer_idx": 0},
    "HGRN2Attention": HEADS,
    "KimiDeltaAttention": HEADS,
    "LightNetAttention": HEADS,
    "LinearAttention": {"hidden_size": 128, "num_heads": 2},
    "MesaNet": HEADS,
    "MultiScaleRetention": HEADS,
    "PaTHAttention": HEADS,
    "RWKV6Attention": HEADS,
}


@pytest.mark.parametrize("name", LAYERS)
def test_names_are_watched_where_the_real_layers_look_them_up(name):
    module = getattr(importlib.import_module("fla.layers"), name)(**LAYERS[name])
    namespace = sys.modules[type(module).__module__]
    before = {name: vars(namespace)[name] for name in FLA if name in vars(namespace)}
    assert before
    with capturing(module, lambda call: None):
        assert all(vars(namespace)[name] is not function for name, function in before.items())
    assert all(vars(namespace)[name] is function for name, function in before.items())


@pytest.mark.gpu
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("length", [48, 128])  # beyond 64 tokens layers take another function
def test_real_layers(name, length):
    torch.manual_seed(0)
    module = getattr(importlib.import_module("fla.layers"), name)(**LAYERS[name])
    module = module.to("cuda", torch.bfloat16).eval()
    hidden = torch.randn(2, length, 128, device="cuda", dtype=torch.bfloat16)
    found = []
    with torch.no_grad():
        before = module(hidden)[0]
        with capturing(module, lambda call: found.append(verify(call)), shape=(2, length)) as capture:
            after = module(hidden)[0]
    assert not capture.refused and found
    assert all(each.capture_error < 3e-2 for each in found)
    assert torch.equal(before, after)
