"""Matrices without a finite state, after LAPACK's test generators: spectra, grading, ties, zeros, huge rank ones.

Each maker returns `(kind, T [heads, L, L], natural tolerances)`. `_spectrum` follows the modes of LAPACK's DLATMS.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .dice import Dice, powers

Made = tuple[str, Tensor, tuple[float, ...]]


def matrix(dice: Dice, heads: int, length: int) -> Made:
    return dice.choice(MAKERS)(dice, heads, length)


def _corner(blocks: Tensor, length: int) -> Tensor:
    """`T` whose lower left corner holds the blocks `[H, m, m]`, zero elsewhere."""
    T = blocks.new_zeros(len(blocks), length, length)
    rows, columns = blocks.shape[1:]
    T[:, length - rows :, :columns] = blocks
    return T


def _spectrum(dice: Dice, n: int) -> tuple[str, Tensor]:
    """Singular values with a condition number between 10 and 1e14."""
    digits = dice.uniform(1, 14)
    low = 10.0**-digits
    s = torch.ones(n, dtype=torch.float64)
    name = dice.choice(["one large", "one small", "geometric", "arithmetic", "random logarithms", "clusters"])
    if name == "one large":
        s[1:] = low
    elif name == "one small":
        s[-1] = low
    elif name == "geometric":
        s = powers(0, -digits, n)
    elif name == "arithmetic":
        s = torch.linspace(1, low, n, dtype=torch.float64)
    elif name == "random logarithms":
        s = 10 ** (-digits * dice.flat(n))
    else:
        levels = 10 ** (-digits * dice.flat(dice.randint(2, 4)))
        s = levels[dice.integers(0, len(levels) - 1, n).long()]
    return name, s.sort(descending=True).values


def given_spectrum(dice: Dice, heads: int, length: int) -> Made:
    size = max(length // 2, 1) if dice.chance(0.5) else length
    name, s = _spectrum(dice, size)
    A = torch.stack([dice.orthogonal(size) * s @ dice.orthogonal(size) for _ in range(heads)])
    return f"spectrum: {name}", _corner(A, length), (float(s[len(s) // 2] * 1.5),)


def integer_block(dice: Dice, heads: int, length: int) -> Made:
    """A low rank of huge integers plus small integers: pivots that are exactly zero, values at small integers."""
    size = max(length // 2, 1) if dice.chance(0.5) else length
    rank, top = dice.randint(1, 3), dice.randint(1, 2)
    u, v = dice.integers(-1, 1, heads, size, rank), dice.integers(-1, 1, heads, size, rank)
    A = 2.0 ** dice.choice([dice.randint(2, 40), 18, 30]) * (u @ v.mT) + dice.integers(-top, top, heads, size, size)
    return "integer block", _corner(A, length), (1.0,)


def small_integers(dice: Dice, heads: int, length: int) -> Made:
    sparse = dice.flat(heads, length, length) < dice.choice([0.05, 0.3, 1.0])
    return "small integers", dice.integers(-1, 1, heads, length, length) * sparse, (1.0, 2.0)


def graded(dice: Dice, heads: int, length: int) -> Made:
    """Rows, columns or both in powers that rise or fall."""
    T = dice.normal(heads, length, length)
    ends = [dice.uniform(0, dice.choice([6, 14, 60])) for _ in range(2)]
    rows = powers(0, dice.choice([-1, 0, 1]) * ends[0], length)
    columns = powers(0, dice.choice([-1, 0, 1]) * ends[1], length)
    return "graded", rows[:, None] * T * columns, ()


def low_rank(dice: Dice, heads: int, length: int) -> Made:
    rank, noise = dice.randint(1, max(length // 3, 1)), dice.choice([0.0, 10.0 ** dice.uniform(-14, -2)])
    T = dice.normal(heads, length, rank) @ dice.normal(heads, rank, length)
    T = T + noise * dice.normal(heads, length, length)
    return "low rank", T, (noise * length**0.5,) if noise else ()


def ties(dice: Dice, heads: int, length: int) -> Made:
    """Many equal singular values: shifts, permutations, copies of one small block, orthogonal corners."""
    name = dice.choice(["shift", "permutation", "copies", "orthogonal"])
    if name == "shift":
        T = torch.diag(torch.ones(max(length - dice.randint(1, 3), 0), dtype=torch.float64), -1)
        T = torch.nn.functional.pad(T, (0, length - len(T), 0, length - len(T)))[:length, :length]
        T = T.expand(heads, -1, -1).clone()
    elif name == "permutation":
        T = torch.stack([torch.eye(length).double()[dice.flat(length).argsort()] for _ in range(heads)])
    elif name == "copies":
        size = dice.randint(1, min(8, length))
        block = dice.normal(size, size)
        times = -(-length // size)
        T = torch.kron(torch.eye(times).double().flip(0), block)[:length, :length].expand(heads, -1, -1).clone()
    else:
        size = max(length // 2, 1)
        T = _corner(torch.stack([dice.orthogonal(size) for _ in range(heads)]), length)
    return f"ties: {name}", T, (1.0, 0.5)


def zeros(dice: Dice, heads: int, length: int) -> Made:
    """Zero but for some rows, columns, documents or spots."""
    name = dice.choice(["all", "rows and columns", "documents", "spots", "one head"])
    T = dice.normal(heads, length, length)
    if name == "all":
        T = torch.zeros_like(T)
    elif name == "rows and columns":
        T = T * (dice.flat(heads, length, 1) < 0.6) * (dice.flat(heads, 1, length) < 0.6)
    elif name == "documents":
        number = (dice.flat(length) < 0.1).cumsum(0)
        T = T * (number[:, None] == number)
    elif name == "spots":
        T = T * (dice.flat(heads, length, length) < 2 / length)
    else:
        T[0] = 0.0
    return f"zeros: {name}", T, ()


def noise(dice: Dice, heads: int, length: int) -> Made:
    name = dice.choice(["normal", "positive", "Hilbert", "ones"])
    if name == "normal":
        T = dice.normal(heads, length, length)
    elif name == "positive":
        T = dice.flat(heads, length, length)
    elif name == "Hilbert":
        index = torch.arange(length, dtype=torch.float64)
        T = (1 / (index[:, None] + index + 1)).flip(0).expand(heads, -1, -1).clone()
    else:
        T = torch.ones(heads, length, length, dtype=torch.float64)
    return f"noise: {name}", T, ()


def one_large_direction(dice: Dice, heads: int, length: int) -> Made:
    """One large singular value whose directions alternate in sign or sum to zero, far above everything else."""
    sign = 1 - 2 * (torch.arange(length) % 2).double()
    u = sign if dice.chance(0.5) else dice.normal(length)
    v = sign if dice.chance(0.5) else dice.normal(length)
    small = 10.0 ** dice.uniform(-9, -2)
    T = (u - u.mean())[:, None] * (v - v.mean()) + small * dice.normal(heads, length, length)
    return "one large direction", T, (small,)


MAKERS = [
    given_spectrum,
    given_spectrum,
    integer_block,
    integer_block,
    small_integers,
    graded,
    low_rank,
    ties,
    zeros,
    noise,
    one_large_direction,
]
