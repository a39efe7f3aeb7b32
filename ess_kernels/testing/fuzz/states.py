"""Recurrences: tokens, changes of basis, cancellation of states, gates from empty to growing, dense transitions."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, normalize

from .case import Case
from .dice import Dice, powers

Tokens = tuple[str, Tensor, Tensor]


def gated(dice: Dice, heads: int, length: int, n: int) -> Case:
    """Linear attention, GLA, Mamba, Mamba-2 or a diagonal recurrence."""
    family = dice.choice(["linear_attention", "linear_attention", "gla", "gla", "ssd", "selective_scan", "recurrence"])
    if family == "selective_scan":
        return _selective_scan(dice, heads, length, n)
    name, q, k = _tokens(dice, heads, length, n)
    if family == "linear_attention":
        return Case(family, name, {"q": _by_time(q), "k": _by_time(k)}, {"scale": 1.0}, _natural(name))
    if family == "ssd":
        dt = dice.flat(1, length, heads) * 10.0 ** dice.uniform(-3, 1)
        A = -(10.0 ** dice.uniform(-3, 1)) * dice.flat(heads)
        return Case(family, name, {"dt": dt, "A": A, "B": _by_time(k), "C": _by_time(q)})
    gate, decays = _gates(dice, heads, length, n)
    kind = f"{name}; gates: {gate}"
    if family == "gla":
        inputs = {"q": _by_time(q), "k": _by_time(k), "g": _by_time(decays)}
        return Case(family, kind, inputs, {"scale": 1.0}, _natural(name))
    # powers of two: products of them lose nothing
    transition = torch.exp2(decays.round()) if dice.chance(0.5) else decays.exp()
    return Case(family, kind, {"A": transition, "B": k, "C": q}, {"diagonal": True}, _natural(name))


def _by_time(x: Tensor) -> Tensor:
    """`[H, L, n]` to fla's `[1, L, H, n]`."""
    return x.transpose(0, 1)[None].contiguous()


def _natural(name: str) -> tuple[float, ...]:
    return (1.0,) if "integers" in name else ()


def _tokens(dice: Dice, heads: int, length: int, n: int) -> Tokens:
    """What is read and written, `[H, L, n]` each, with up to one twist."""
    name = dice.choice(["normal", "normal", "integers", "repeated keys", "orthonormal", "positive"])
    q, k = dice.normal(heads, length, n), dice.normal(heads, length, n)
    if name == "integers":
        q, k = dice.integers(-2, 2, heads, length, n), dice.integers(-2, 2, heads, length, n)
    elif name == "repeated keys":
        k = k[:, torch.arange(length) % min(3, length)]
    elif name == "orthonormal":
        eye = torch.eye(n).double()
        q, k = (eye[(torch.arange(length) // stride) % n].expand(heads, -1, -1).clone() for stride in (1, 2))
    elif name == "positive":
        q, k = q.abs(), k.abs()
    twist = dice.choice(["none", "none", "basis", "cancellation", "graded", "one large", "dead", "rows"])
    if twist == "basis":
        digits = dice.uniform(0, 6)
        left, right, s = dice.orthogonal(n), dice.orthogonal(n), powers(-digits, digits, n)
        q, k = q @ (left * s @ right), k @ (left / s @ right)
        twist = f"basis 1e{2 * digits:.0f}"
    elif twist == "cancellation" and n >= 2:
        # T is made of what the second half of the states leaves of the first, down to nothing at all
        half, bits = n // 2, dice.choice([None, *range(4, 53, 4)])
        q[..., half : 2 * half] = q[..., :half]
        k[..., half : 2 * half] = -k[..., :half] * (1 if bits is None else 1 - 2.0**-bits)
        q[..., 2 * half :] = 0
        twist = "cancellation, whole" if bits is None else f"cancellation 2^-{bits}"
    elif twist == "graded":
        k = k * powers(0, -dice.uniform(2, 14), n)
    elif twist == "one large":
        k[..., 1:] *= 10.0 ** -dice.uniform(2, 10)
    elif twist == "dead":
        q[..., ::3], k[..., 1::3] = 0.0, 0.0
    elif twist == "rows":
        q = q * powers(0, -dice.uniform(2, 60), length)[:, None]
    return name if twist == "none" else f"{name}, {twist}", q, k


def _gates(dice: Dice, heads: int, length: int, n: int) -> tuple[str, Tensor]:
    """Logarithms of decays, `[H, L, n]`."""
    shape = (heads, length, n)
    name = dice.choice(["none", "weak", "strong", "near zero", "zeros and ones", "by channel", "growing", "documents"])
    zero = torch.zeros(shape, dtype=torch.float64)
    if name == "weak":
        return name, logsigmoid(dice.normal(*shape)) / dice.choice([1, 16, 256])
    if name == "strong":
        return name, -3 + logsigmoid(dice.normal(*shape))
    if name == "near zero":
        return name, -dice.choice([30, 100, 300]) * (dice.flat(*shape) < 0.3) + 0.1 * dice.normal(*shape)
    if name == "zeros and ones":
        return name, zero.masked_fill(dice.flat(*shape) < 0.1, -torch.inf)
    if name == "by channel":
        return name, -powers(-4, 1.5, n).expand(shape).clone()
    if name == "growing":
        return name, dice.uniform(0, 0.7) * (dice.flat(*shape) - dice.choice([0.0, 0.3]))
    if name == "documents":
        return name, zero.masked_fill((dice.flat(1, length, 1) < 0.05).expand(shape), -torch.inf)
    return name, zero


def _selective_scan(dice: Dice, heads: int, length: int, n: int) -> Case:
    delta = dice.flat(1, heads, length) * 10.0 ** dice.uniform(-3, 1)
    A = -torch.arange(1, n + 1).double().expand(heads, n) * dice.choice([1.0, 0.05])
    B, C = dice.normal(1, n, length), dice.normal(1, n, length)
    inputs = {"delta": delta, "A": A.clone(), "B": B, "C": C}
    return Case("selective_scan", "Mamba", inputs)


def delta_rules(dice: Dice, heads: int, length: int, n: int) -> Case:
    """KDA, whose keys repeat, are close, or are no unit vectors; and diagonal plus rank one in general."""
    name, q, k = _tokens(dice, heads, length, n)
    gate, g = _gates(dice, heads, length, n)
    if dice.chance(0.35):
        a = normalize(dice.normal(heads, length, n), dim=-1)
        b = -a * dice.flat(heads, length, 1) * dice.choice([1.0, 2.0])
        twist = dice.choice(["layers", "shears", "anything"])
        if twist == "shears":
            b = dice.normal(heads, length, n) / dice.choice([1.0, 4.0])
            b = b - (b * a).sum(-1, keepdim=True) * a
        elif twist == "anything":
            b = dice.normal(heads, length, n) / dice.choice([2.0, 8.0])
        inputs = {"q": q, "k": k, "a": a, "b": b, "gk": g}
        by_time = {name: _by_time(x) for name, x in inputs.items()}
        return Case("dplr_delta_rule", f"{name}; {twist}; gates: {gate}", by_time, {"scale": 1.0})
    keys = dice.choice(["unit", "unit", "one", "few", "close", "raw"])
    k = normalize(dice.normal(heads, length, n), dim=-1)
    if keys == "one":
        k = k[:, :1].expand(heads, length, n).clone()
    elif keys == "few":
        k = k[:, torch.arange(length) % min(5, length)]
    elif keys == "close":
        k = normalize(k[:, :1] + 10.0 ** -dice.uniform(1, 8) * k, dim=-1)
    elif keys == "raw":
        k = dice.uniform(0.2, 2) * dice.normal(heads, length, n)
    beta = dice.flat(1, length, heads) * dice.choice([1.0, 2.0])
    steps = dice.choice(["random", "random", "constant", "some zero"])
    if steps == "constant":
        beta = torch.full_like(beta, dice.choice([1.0, 2.0, 1.9, 0.5]))
    elif steps == "some zero":
        beta = beta * (dice.flat(1, length, heads) < 0.7)
    kind = f"{name}; keys: {keys}; steps: {steps}; gates: {gate}"
    return Case("kda", kind, {"q": _by_time(q), "k": _by_time(k), "g": _by_time(g), "beta": beta}, {"scale": 1.0})


def dense_transitions(dice: Dice, heads: int, length: int, n: int) -> Case:
    """Rotations, delta rules, constant matrices that are far from normal, singular and nilpotent ones."""
    name = dice.choice(
        ["random", "rotation", "delta rule", "delta rule, repeated", "non-normal", "singular", "nilpotent", "growing"]
    )
    B, C = dice.normal(heads, length, n), dice.normal(heads, length, n)
    A = dice.normal(heads, length, n, n) / (3 * n) ** 0.5
    if name == "rotation":
        A = dice.orthogonal(n).expand(heads, length, n, n).clone()
    elif name.startswith("delta rule"):
        B = normalize(B, dim=-1)
        beta = dice.uniform(0, 2)
        if name.endswith("repeated"):
            B, beta = B[:, :1].expand(heads, length, n).clone(), 1.0
        A = torch.eye(n).double() - beta * B[..., None] * B[..., None, :]
    elif name == "non-normal":
        s = powers(0, dice.uniform(1, 6), n)
        basis = dice.orthogonal(n) * s @ dice.orthogonal(n)
        A = basis @ torch.diag(dice.uniform(0.5, 1) * (2 * dice.flat(n) - 1)) @ torch.linalg.inv(basis)
        A = A.expand(heads, n, n).clone()
        options = {"diagonal": False, "length": length}
        return Case("recurrence", f"dense: {name}", {"A": A, "B": B[:, 0], "C": C[:, 0]}, options)
    elif name == "singular":
        A[:, :: dice.randint(2, 9)] = 0.0
        A[..., n // 2 :] = 0.0
    elif name == "nilpotent":
        A = torch.diag(torch.ones(n - 1).double(), -1).expand(heads, length, n, n).clone()
    elif name == "growing":
        A = A * dice.uniform(1, 3)
    return Case("recurrence", f"dense: {name}", {"A": A, "B": B, "C": C}, {"diagonal": False})
