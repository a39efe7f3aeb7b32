"""The next case of the fuzzer: family, sizes, kind, unit; and the positions and tolerances to ask for."""

from __future__ import annotations

import torch
from torch import Tensor

from .case import Case
from .dice import Dice
from .matrices import matrix
from .oracle import Truth
from .states import delta_rules, dense_transitions, gated

# lengths at which blocks, leaves and tiles begin and end
EDGES = (8, 16, 32, 64, 128)
SIZES = (1, 2, 3, 4, 5, 8, 12, 15, 16, 17, 32, 33, 64, 65)
# recurrences that cost the oracle a matrix a token, by name
STATES = {"delta rules": delta_rules, "dense transitions": dense_transitions}
# more positions than this are sampled, the oracle's SVDs being what costs
MOST_POSITIONS = 48


def make_case(dice: Dice, small: bool = False) -> Case:
    """A random operator; `small` ones suit programs that are interpreted."""
    length = _length(dice, 40 if small else 200)
    heads = dice.randint(1, 2) if small else max(1, min(6, 240 // length, dice.randint(1, 6)))
    families = ["dense", "dense", "gated", "gated", "gated", *STATES, "attention", "convolution"]
    family = dice.choice(families)
    if family == "dense":
        kind, T, tolerances = matrix(dice, heads, length)
        case = Case("dense", kind, {"T": T.tril(-1)}, {}, tolerances)
    elif family == "attention":
        case = _attention(dice, heads, length)
    elif family == "convolution":
        case = _convolution(dice, heads, length)
    else:
        most = 65 if family == "gated" and not small else 16
        n = dice.choice([n for n in SIZES if n <= most])
        case = STATES.get(family, gated)(dice, heads, length, n)
    if dice.chance(0.2):
        return case.cast(dice.choice([torch.float32, torch.float32, torch.bfloat16, torch.float16]))
    return case.scaled(dice.choice([0, 0, 0, 1, -200, 200, dice.randint(-200, 200)]))


def _length(dice: Dice, longest: int) -> int:
    edges = [edge for edge in EDGES if edge < longest]
    if dice.chance(0.6):
        return max(2, dice.choice(edges) + dice.randint(-1, 1))
    # short ones are many, so that there is time for many
    return dice.randint(2, dice.choice([24, 72, 110, longest]) if longest > 110 else longest)


def _attention(dice: Dice, heads: int, length: int) -> Case:
    size = dice.choice([1, 2, 4, 8, 16, 64])
    q, k = dice.normal(1, heads, length, size), dice.normal(1, heads, length, size)
    kind = dice.choice(
        ["plain", "plain", "sink", "local", "identical keys", "window", "documents", "sinks", "gates", "slopes"]
    )
    sharpness = dice.choice([0.2, 1.0, 3.0, 12.0]) / size**0.5
    inputs, options = {}, {"scale": 1.0}
    if kind == "sink":
        q, k[:, :, 0] = q + 2, 1.0
    elif kind == "local":
        w = 10000.0 ** (-torch.arange(max(size // 2, 1)).double() / max(size // 2, 1))
        angle = torch.arange(length).double()[:, None] * w
        k = torch.cat([angle.cos(), angle.sin()], -1).expand(1, heads, length, -1).clone()
        q = 4 * k + 0.1 * dice.normal(*k.shape)
    elif kind == "identical keys":
        k = k[:, :, : dice.randint(1, 2)].repeat(1, 1, length, 1)[:, :, :length]
    elif kind == "window":
        options["window_size"] = dice.randint(1, length)
    elif kind == "documents":
        number = (dice.flat(length) < 0.1).cumsum(0)
        inputs["attn_mask"] = (number[:, None] == number)[None, None]
    elif kind == "gates":
        g = -dice.choice([0.01, 0.3, 3.0]) * dice.flat(1, heads, length)
        inputs["g"] = g.masked_fill(dice.flat(1, heads, length) < dice.choice([0.0, 0.1]), -torch.inf)
    elif kind == "slopes":
        inputs["alibi_slopes"] = torch.exp2(-8 * dice.flat(heads))
    elif kind == "sinks":
        inputs["sinks"] = 3 * dice.normal(heads)
    return Case("attention", kind, {"q": sharpness * q, "k": k, **inputs}, options)


def _convolution(dice: Dice, heads: int, length: int) -> Case:
    lag = torch.arange(length).double()
    kind = dice.choice(["noise", "exponentials", "falling", "growing", "integers"])
    k = dice.normal(heads, length)
    if kind == "exponentials":
        k = (dice.normal(heads, 3, 1) * torch.tensor([0.99, 0.7, -0.4]).double()[:, None] ** lag).sum(1)
    elif kind in ("falling", "growing"):
        k = k * torch.exp((-1 if kind == "falling" else 1) * dice.uniform(0.05, 1) * lag)
    elif kind == "integers":
        k = dice.integers(-1, 1, heads, length)
    if dice.chance(0.5):
        return Case("convolution", kind, {"k": k})
    gates = [dice.normal(1, heads, length) * (dice.flat(1, heads, length) < dice.choice([0.5, 1.0])) for _ in range(2)]
    return Case("gated_convolution", kind, {"x0": gates[0], "k": k, "x1": gates[1]})


def some_positions(dice: Dice, length: int) -> list[int]:
    """All of them, or a sample that likes block edges."""
    everywhere = list(range(1, length))
    if len(everywhere) <= MOST_POSITIONS:
        return everywhere
    edges = [i for i in everywhere if i % 16 in (0, 1, 15)]
    wanted = set(dice.sample(edges, min(len(edges), MOST_POSITIONS // 3)))
    wanted |= set(dice.sample(everywhere, MOST_POSITIONS - len(wanted)))
    return sorted(wanted)


def tolerances(dice: Dice, case: Case, truth: Truth, how_many: int) -> list[float]:
    """Absolute tolerances on singular values, just beside them, between them, far below the largest, and natural ones.

    Those of a block `T[e:, :a]` with `a < e` are among them: all positions from `a` to `e` share its elimination.
    """
    found = list(case.tolerances)
    while len(found) < how_many:
        head, at = dice.randrange(truth.heads), dice.randrange(len(truth.positions))
        s = truth.values[head, at]
        if dice.chance(0.15):
            s = _shared_values(dice, truth, head)
        positive = int((s > 1e-13 * s[:1]).sum())
        if not positive:
            found.append(truth.unit * 10.0 ** dice.uniform(-12, 1))
            continue
        k = dice.randrange(positive)
        value, below = float(s[k]), float(s[k + 1]) if k + 1 < positive else 0.0
        way = dice.choice(["on", "beside", "between", "between", "anywhere"])
        if way == "on":
            tau = value
        elif way == "beside":
            tau = value * (1 + dice.choice([-1, 1]) * 10.0 ** -dice.uniform(3, 15))
        elif way == "between":
            tau = (value * below) ** 0.5 if below else value / 2
        else:
            tau = float(s[0]) * 10.0 ** -dice.uniform(0, 12)
        found.append(tau * truth.unit)
    return found


def _shared_values(dice: Dice, truth: Truth, head: int) -> Tensor:
    length = truth.length
    a = dice.randrange(1, length)
    e = min(length - 1, a + dice.choice([1, 4, 8, 16, 32]))
    return torch.linalg.svdvals(torch.from_numpy(truth.block(head, e).high[:, :a].copy()))


def relative_tolerances(dice: Dice, how_many: int) -> list[float]:
    return [10.0 ** -dice.uniform(0, 12) for _ in range(how_many)]
