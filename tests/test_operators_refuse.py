"""What the diagonal families refuse, in words that name the argument, what was expected and what came."""

import pytest
import torch

from ess_kernels import operators

q = k = torch.randn(2, 5, 4, 3)
s = torch.randn(2, 5, 4, 6)
gates = -torch.rand(2, 5, 4)
channels = torch.randn(2, 5, 4)
per_head = torch.rand(4, 3)
taps = torch.randn(4, 3)

CYFA = {
    **dict.fromkeys(("g", "delta", "beta"), gates),
    "readout": torch.randn(4, 5, 5),
    "q_norm_weight": torch.ones(3),
    "k_norm_weight": torch.ones(3),
    "q_norm_eps": 1e-6,
    "k_norm_eps": 1e-6,
}


def cyfa(**changed):
    return operators.cyfa(q, k, **{**CYFA, **changed})


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: operators.rwkv6(q, k[..., :2], q, per_head), ValueError, ["k: ", "[2, 5, 4, 3]", "[2, 5, 4, 2]"]),
        (lambda: operators.rwkv6(q, k, q, gates), ValueError, ["u: ", "[H, K] = [4, 3]", "[2, 5, 4]"]),
        (lambda: operators.rwkv6(q, k, gates, per_head), ValueError, ["w: ", "[2, 5, 4, 3]", "[2, 5, 4]"]),
        (lambda: operators.rwkv4(q, w=taps, u=taps), ValueError, ["k: ", "3 axes [B, T, D]", "[2, 5, 4, 3]"]),
        (lambda: operators.rwkv4(channels, w=taps, u=taps[:, 0]), ValueError, ["w: ", "[D] = [4]", "[4, 3]"]),
        (lambda: operators.hgrn(q), ValueError, ["g: ", "3 axes [B, T, D]", "[2, 5, 4, 3]"]),
        (lambda: operators.hgrn2(q, gates), ValueError, ["g: ", "[2, 5, 4, 3]", "[2, 5, 4]"]),
        (lambda: operators.rg_lru(channels, reset=torch.zeros(2, 5)), TypeError, ["reset: ", "bool", "float32"]),
        (lambda: operators.rg_lru(channels, reset=[True]), TypeError, ["reset: ", "bool", "list"]),
        (lambda: operators.rg_lru(channels, reset=torch.ones(5).bool()), ValueError, ["reset: ", "[2, 5]", "[5]"]),
        (lambda: operators.gsa(q, k[:, :, :3], s[:, :, :3]), ValueError, ["k: ", "divides the 4 heads", "3"]),
        (lambda: operators.gsa(q, k, s[:, :, :2]), ValueError, ["s: ", "[2, 5, 4, 6]", "[2, 5, 2, 6]"]),
        (lambda: operators.gsa(q, k, s, g=gates), ValueError, ["g: ", "[B, T, H, M]", "[2, 5, 4]"]),
        (lambda: operators.gsa(q, k, s[..., :0]), ValueError, ["s: ", "M", "at least 1", "0"]),
        (lambda: operators.gsa(q, k, s, scale="1"), TypeError, ["scale: ", "number", "str"]),
        (lambda: operators.lightnet(q, k[0]), ValueError, ["k: ", "[2, 5, 4, 3]", "[5, 4, 3]"]),
        (
            lambda: operators.mesa_net(q, k, g=gates, beta=gates, lamb=gates),
            ValueError,
            ["lamb: ", "[H, K] = [4, 3]", "[2, 5, 4]"],
        ),
        (
            lambda: operators.mesa_net(q, k, g=gates, beta=gates, lamb=per_head, use_qk_l2norm_in_kernel=1),
            TypeError,
            ["use_qk_l2norm_in_kernel: ", "bool", "int"],
        ),
        (
            lambda: operators.lightning_attention(q, k, layer_idx=12, num_layers=12),
            ValueError,
            ["layer_idx: ", "less than num_layers = 12", "12"],
        ),
        (
            lambda: operators.lightning_attention(q, k, layer_idx=0, num_layers=0),
            ValueError,
            ["num_layers: ", "at least 1", "0"],
        ),
        (lambda: cyfa(readout=torch.randn(4, 6, 6)), ValueError, ["readout: ", "odd", "6"]),
        (lambda: cyfa(readout=torch.randn(4, 5, 7)), ValueError, ["readout: ", "[4, 7, 7]", "[4, 5, 7]"]),
        (lambda: cyfa(q_norm_eps=torch.tensor(1e-6)), TypeError, ["q_norm_eps: ", "number", "Tensor"]),
        (lambda: cyfa(beta=q), ValueError, ["beta: ", "[B, T, H] = [2, 5, 4]", "[2, 5, 4, 3]"]),
        (lambda: operators.mlstm(q, k, i=gates[0], f=gates), ValueError, ["i: ", "[B, H, T]", "[5, 4]"]),
        (lambda: operators.lfm2_conv(channels, channels, taps), ValueError, ["weight: ", "[5, 3]", "[4, 3]"]),
        (lambda: operators.dynamic_short_convolution(taps), ValueError, ["weight: ", "[B, H, L, W]", "[4, 3]"]),
        (lambda: operators.dynamic_short_convolution(q[..., :0]), ValueError, ["weight: ", "W", "at least 1", "0"]),
        (lambda: operators.gla(q, k, torch.randn(2, 5, 6, 3)), ValueError, ["g: ", "a multiple of 4", "[2, 5, 6, 3]"]),
        (lambda: operators.simple_gla(q, k, g_gamma=gates[0, 0, :3]), ValueError, ["g_gamma: ", "[HV]", "[3]"]),
        (lambda: operators.retention(q, k, num_v_heads=6), ValueError, ["num_v_heads: ", "q's 4 heads", "6"]),
        (lambda: operators.linear_attention(q, k, num_v_heads=8.0), TypeError, ["num_v_heads: ", "integer", "float"]),
    ],
)
def test_constructors_refuse(call, error, words):
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value).startswith(words[0])
    assert all(word in str(caught.value) for word in words), caught.value


MAMBA3 = {
    **{name: torch.rand(2, 4, 5) for name in ("ADT", "DT", "Trap")},
    **{name: torch.randn(4, 6) for name in ("Q_bias", "K_bias")},
    "Angles": torch.randn(2, 5, 4, 3),
}
MAMBA3_REFUSES = [
    ("Q", torch.randn(2, 5, 3, 6), ["groups G that divides the 4 heads", "3"]),
    ("ADT", torch.rand(2, 5, 4), ["[B, H, L]", "[2, 5, 4]"]),
    ("K_bias", torch.randn(6), ["[H, N] = [4, 6]", "[6]"]),
    ("Angles", torch.randn(2, 5, 4, 4), ["at most N / 2 = 3", "4"]),
]


@pytest.mark.parametrize(("name", "value", "words"), MAMBA3_REFUSES)
def test_mamba3_refuses(name, value, words):
    groups = value if name == "Q" else torch.randn(2, 5, 2, 6)
    changed = {} if name == "Q" else {name: value}
    with pytest.raises(ValueError, match=f"^{name}: ") as caught:
        operators.mamba3(groups, groups, **{**MAMBA3, **changed})
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize("name", ["ttt", "titans", "gated_oja_rule", "mom"])
def test_mixers_without_a_matrix_say_why(name):
    with pytest.raises(NotImplementedError, match=f"^{name}: "):
        getattr(operators, name)(q, k, eta=0.1)


def test_a_gain_that_is_no_number_marks_its_channel():
    a = torch.full((2, 5, 4), 0.5)
    a[1, 3, 2] = 1.5
    op = operators.rg_lru(a)
    assert op.finite(op.all_heads()).view(2, 4).logical_not().nonzero().tolist() == [[1, 2]]


def test_a_singular_regression_marks_its_head_and_no_other():
    """Without a regulariser and with a first token of no weight, its system has no solution."""
    lamb, beta = torch.ones(4, 3), gates.exp()
    lamb[2], beta[:, 0] = 0, 0
    op = operators.mesa_net(q, k, g=gates, beta=beta, lamb=lamb)
    assert op.finite(op.all_heads()).view(2, 4).tolist() == [[True, True, False, True]] * 2
