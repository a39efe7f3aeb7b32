"""Argument checks shared by the public functions: every error names the argument, what was expected and what came."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ._readable import check_plain, check_readable

FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
COMPLEX = (torch.complex64, torch.complex128)
LARGEST_INTEGER = 2**63 - 1


def _shape(sizes: Sequence[int]) -> str:
    return "[" + ", ".join(str(int(size)) for size in sizes) + "]"


def check_floating(name: str, x: Any, *, or_complex: bool = False) -> None:
    """`TypeError` unless `x` is a real floating-point tensor (float16, bfloat16, float32 or float64).

    With `or_complex` complex64 and complex128 will do as well.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"{name}: expected a floating-point tensor, got {type(x).__name__}")
    if x.dtype not in FLOATING and not (or_complex and x.dtype in COMPLEX):
        others = "bfloat16, float32, float64, complex64 or complex128" if or_complex else "bfloat16, float32 or float64"
        raise TypeError(f"{name}: expected float16, {others}, got {x.dtype}")
    check_plain(name, x)


def refuse_complex(why: str, **tensors: Any) -> None:
    """`TypeError` for a complex tensor, which says why there cannot be one."""
    for name, x in tensors.items():
        if is_complex(x):
            raise TypeError(f"{name}: expected real numbers ({why}), got {x.dtype}")


def is_complex(x: Any) -> bool:
    return isinstance(x, Tensor) and x.is_complex()


def refuse_gradient(name: str, value: Any) -> None:
    """`ValueError` for a tensor, or a list that holds one, from which a gradient is wanted that would be lost."""
    some = value if isinstance(value, (list, tuple)) else [value]
    if torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in some):
        raise ValueError(
            f"{name}: expected plain numbers, got a tensor that requires grad: no gradient flows to {name}, pass "
            f"{name}.detach()"
        )


def check_bool(name: str, value: Any) -> None:
    """`TypeError` unless the value is True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name}: expected a bool, got {type(value).__name__}")


def check_layout(name: str, x: Any, layout: str, *, or_complex: bool = False) -> tuple[int, ...]:
    """The sizes of a floating-point tensor that has as many axes as `layout`, for instance `"[B, T, H, K]"`."""
    check_floating(name, x, or_complex=or_complex)
    axes = layout.count(",") + 1
    if x.dim() != axes:
        raise ValueError(f"{name}: expected {axes} axes {layout}, got shape {_shape(x.shape)}")
    return tuple(x.shape)


def check_shape(name: str, x: Any, shape: Sequence[int], layout: str, *, or_complex: bool = False) -> None:
    """`ValueError` unless the floating-point tensor has exactly this shape."""
    check_floating(name, x, or_complex=or_complex)
    if tuple(x.shape) != tuple(shape):
        raise ValueError(f"{name}: expected shape {layout} = {_shape(shape)}, got {_shape(x.shape)}")


def check_same_device(**tensors: Tensor | None) -> None:
    """`ValueError` unless all tensors (`None` is skipped) lie on the first one's device."""
    given = {name: x for name, x in tensors.items() if x is not None}
    first, *others = given
    for name in others:
        if given[name].device != given[first].device:
            raise ValueError(f"{name}: expected {first}'s device {given[first].device}, got {given[name].device}")


def check_groups(name: str, groups: int, axis: str, heads: int) -> None:
    """`ValueError` unless `heads` divide evenly among `groups`."""
    if heads and (groups < 1 or heads % groups):
        raise ValueError(f"{name}: expected a number of groups {axis} that divides the {heads} heads, got {groups}")


def check_positive_size(name: str, axis: str, size: int) -> None:
    """`ValueError` unless an axis that a state or a key needs is not empty."""
    if size < 1:
        raise ValueError(f"{name}: expected {axis} to be at least 1, got {size}")


def finite_float(name: str, value: Any, *, positive: bool = False) -> float:
    """A finite real number as a float (bools and tensors are refused)."""
    expected = "a positive finite number" if positive else "a finite number"
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}: expected {expected}, got {type(value).__name__}")
    number = as_float(name, value, expected)
    if not math.isfinite(number) or (positive and number <= 0):
        raise ValueError(f"{name}: expected {expected}, got {value}")
    return number


def as_float(name: str, value: Any, expected: str) -> float:
    """`float(value)` of a number; `ValueError` where it is an integer too large for one."""
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{name}: expected {expected}, got one beyond the range of float64") from None


def integer(name: str, value: Any, *, minimum: int) -> int:
    """An integer of at least `minimum`, of 64 bits (bools are refused)."""
    if isinstance(value, bool):
        raise TypeError(f"{name}: expected an integer, got bool")
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name}: expected an integer, got {type(value).__name__}") from None
    if number < minimum:
        raise ValueError(f"{name}: expected at least {minimum}, got {number}")
    if number > LARGEST_INTEGER:
        raise ValueError(f"{name}: expected at most 2**63 - 1, got more")
    return number


def position_list(positions: Any, length: int) -> list[int] | None:
    """The positions asked for, in the caller's order, repeats kept; `None`, which means all of them, stays `None`.

    Each must be an integer in `1..length-1`, in a sequence, a range, an array or a 1-D tensor.
    """
    if positions is None:
        return None
    if isinstance(positions, Tensor):
        if positions.dtype == torch.bool or positions.is_floating_point() or positions.is_complex():
            raise ValueError(f"{_expected_positions(length)}, got a tensor of {positions.dtype}")
        if positions.dim() != 1:
            raise ValueError(f"positions: expected 1 axis, got shape {_shape(positions.shape)}")
        check_plain("positions", positions)
        check_readable("positions", [positions])
        positions = positions.tolist()
    elif isinstance(positions, (str, bytes)) or not hasattr(positions, "__iter__"):
        raise TypeError(f"positions: expected a sequence of integers, got {type(positions).__name__}")
    if isinstance(positions, range):
        # a range that a traced function is given may have symbolic ends, which the tracer unfolds only if made anew
        positions = range(positions.start, positions.stop, positions.step)
    values = list(positions)
    for value in values:
        if not _is_integer(value) or not 1 <= value < length:
            raise ValueError(f"{_expected_positions(length)}, got {value!r}")
    return [value if type(value) is int else operator.index(value) for value in values]


def _expected_positions(length: int) -> str:
    # made only for an error: writing a symbolic length out makes it a constant of the graph being traced
    return f"positions: expected integers in 1..{length - 1}"


def _is_integer(value: Any) -> bool:
    # numpy's bool has no common ancestor with bool, and in some versions an index
    if isinstance(value, (bool, np.bool_)):
        return False
    return isinstance(value, int) or hasattr(value, "__index__")


def check_positions(positions: Any, length: int) -> Tensor:
    """The positions asked for as int64 `[P]` on the CPU; see `position_list`."""
    values = position_list(positions, length)
    if values is None:
        return torch.arange(1, max(length, 1), device="cpu")
    return torch.tensor(values, dtype=torch.int64, device="cpu")


def tolerance_lists(atol: Any, rtol: Any) -> tuple[list[float], list[float], bool]:
    """The pairs `(atol, rtol)` asked for, `M` floats each, and whether either came as a list.

    Both `None` means `atol=1e-3, rtol=0`; one `None` beside a given one means 0. Each is a number >= 0, or a
    list, a tuple or a 1-D tensor of them; two lists pair up.
    """
    if atol is None and rtol is None:
        atol = 1e-3
    absolute, several = _tolerance("atol", atol)
    relative, several_relative = _tolerance("rtol", rtol)
    if several and several_relative and len(absolute) != len(relative):
        raise ValueError(
            f"atol and rtol: expected lists of equal length (pairs), got {len(absolute)} and {len(relative)} values"
        )
    if not several:
        absolute = absolute * len(relative)
    elif not several_relative:
        relative = relative * len(absolute)
    return absolute, relative, several or several_relative


def check_tolerances(atol: Any, rtol: Any) -> tuple[Tensor, Tensor, bool]:
    """The pairs as float64 `[M]` each on the CPU, and whether either came as a list; see `tolerance_lists`."""
    absolute, relative, listed = tolerance_lists(atol, rtol)
    first, second = (torch.tensor(x, dtype=torch.float64, device="cpu") for x in (absolute, relative))
    return first, second, listed


def _tolerance(name: str, value: Any) -> tuple[list[float], bool]:
    """One number or several, and which of the two."""
    if value is None:
        return [0.0], False
    several = isinstance(value, (list, tuple))
    numbers = list(value) if several else [value]
    # plain numbers need no tensor, whose value could not be read while a graph is traced
    if not all(isinstance(x, (float, int)) and not isinstance(x, bool) for x in numbers):
        numbers, several = _from_tensor(name, value)
    floats = [as_float(name, number, "values >= 0") for number in numbers]
    for number in floats:
        if not number >= 0:
            raise ValueError(f"{name}: expected values >= 0, got {number}")
    return floats, several


def _from_tensor(name: str, value: Any) -> tuple[list[float], bool]:
    """The numbers of a tensor, an array or numpy's scalar, and whether they are several; other values are refused."""
    expected = f"{name}: expected a number or a 1-D list of numbers"
    if isinstance(value, Tensor):
        check_plain(name, value)
        check_readable(name, [value])
    # The dtype is looked at first: a conversion to float64 would turn values that are no numbers, such as True, into
    # numbers.
    try:
        kind = torch.as_tensor(value, device="cpu").dtype
        numbers = torch.as_tensor(value, dtype=torch.float64, device="cpu").detach()
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise TypeError(f"{expected}, got {value!r}") from None
    if kind == torch.bool or kind.is_complex:
        raise TypeError(f"{expected}, got {value!r}")
    if numbers.dim() > 1:
        raise ValueError(f"{expected}, got shape {_shape(numbers.shape)}")
    return numbers.reshape(-1).tolist(), numbers.dim() == 1
