"""Linear time-invariant systems, with one or several inputs and outputs."""

from __future__ import annotations

from torch import Tensor

from .._checks import (
    check_bool,
    check_floating,
    check_positive_size,
    check_same_device,
    check_shape,
    integer,
    refuse_complex,
)
from .block_recurrence import blocked
from .recurrence import LinearRecurrence
from .spread import takes_dtensors
from .structure import Operator


@takes_dtensors({})
def lti(A: Tensor, B: Tensor, C: Tensor, length: int, *, diagonal: bool = False) -> Operator:
    """A discrete linear time-invariant system: `T_ij = C A^{i-j-1} B` for `i > j`.

    It is `x_{t+1} = A x_t + B u_t`, `y_t = C x_t`, as in `recurrence`. Far from both ends of a long sequence the
    singular values of `H_i` are the system's Hankel singular values. All tokens are alike, so that PyTorch's engine
    makes the parts of its blocks once.

    Args:
        A: `[*batch, n, n]`, or its diagonal `[*batch, n]` if `diagonal`. Float16, bfloat16, float32 or float64, as all.
        B: `[*batch, n]` for one input, or `[*batch, n, m]`.
        C: `[*batch, n]` for one output, or `[*batch, p, n]`. With several inputs or outputs a position is a token of
            `m` columns and `p` rows, as in `block_recurrence`.
        length: L.
        diagonal: see above.

    Raises:
        TypeError, ValueError: an argument's type, dtype, shape or device is wrong; the message names it.

    Source: the time-invariant case of the paper's recurrence (arXiv 2504.19561).
    """
    check_bool("diagonal", diagonal)
    refuse_complex("recurrence takes complex ones", A=A, B=B, C=C)
    check_floating("A", A)
    layout, axes = ("[*batch, n]", 1) if diagonal else ("[*batch, n, n]", 2)
    if A.dim() < axes or A.shape[-1] != A.shape[-axes]:
        raise ValueError(f"A: expected shape {layout}, got {list(A.shape)}")
    batch, states = A.shape[: A.dim() - axes], A.shape[-1]
    check_positive_size("A", "n", states)
    length = integer("length", length, minimum=0)
    several = []
    for name, x, across in (("B", B, "[*batch, n, m]"), ("C", C, "[*batch, p, n]")):
        check_floating(name, x)
        several.append(x.dim() == len(batch) + 2)
        width = x.shape[-1 if name == "B" else -2] if several[-1] else 1
        shape = (states, width) if name == "B" else (width, states)
        if several[-1]:
            check_shape(name, x, (*batch, *shape), across)
            check_positive_size(name, "m" if name == "B" else "p", width)
        else:
            check_shape(name, x, (*batch, states), "[*batch, n]")
    check_same_device(A=A, B=B, C=C)
    if not any(several):
        return LinearRecurrence(A, B, C, diagonal=diagonal, length=length, constant=True)
    B, C = B if several[0] else B[..., None], C if several[1] else C[..., None, :]
    return blocked(A, B, C, diagonal=diagonal, length=length, constant=True)
