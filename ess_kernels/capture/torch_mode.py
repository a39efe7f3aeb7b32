"""Attention in any model: what torch's own functions show. It needs nothing from any library.

Seen are `scaled_dot_product_attention`, and a softmax whose result is multiplied with values. In the second case `T` is
the model's own tensor, so the comparison with the output shows only that the product was understood.
"""

from __future__ import annotations

import types
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..operators.attention import attention
from ..operators.dense import dense
from .batch_axis import is_open
from .call import ATTRIBUTION_ONLY, MixerCall, Refused
from .one_hot import refuse_future
from .registry import check_lengths

if TYPE_CHECKING:
    from .capturing import Capture

SDPA = torch.nn.functional.scaled_dot_product_attention
SOFTMAX = {torch.nn.functional.softmax, torch.softmax, torch.Tensor.softmax, torch.special.softmax}
MULTI_HEAD = torch.nn.functional.multi_head_attention_forward
PRODUCTS = {torch.matmul, torch.bmm, torch.Tensor.matmul, torch.Tensor.bmm, torch.Tensor.__matmul__}
# functions whose result is still the weights of attention: changes of type and shape, masks, a dropout that is off
KEEPING = {
    "to", "type", "type_as", "float", "half", "bfloat16", "view", "reshape", "dropout", "contiguous", "mul", "__mul__",
    "masked_fill", "where", "__getitem__", "clone", "expand", "nan_to_num", "squeeze", "unsqueeze", "detach",
    "__rmul__", "multiply", "div", "__truediv__", "divide", "true_divide", "flatten", "unflatten",
}  # fmt: skip


class TorchMode(TorchFunctionMode):
    """Sees every function of torch that is called while it is active."""

    def __init__(self, capture: Capture):
        super().__init__()
        self.capture = capture
        self.weights: dict[int, weakref.ref[Tensor]] = {}

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if func is MULTI_HEAD and self.capture.watching:
            with self:
                return seen_inside(func)(*args, **kwargs or {})
        result = func(*args, **kwargs) if kwargs else func(*args)
        # most calls end here: every function of torch passes by
        if not (self.weights or func is SDPA or func in SOFTMAX) or not self.capture.watching:
            return result
        if func is SDPA:
            self.capture.note(None, lambda name: sdpa_call(self.capture, name, args, kwargs or {}, result))
        elif func in SOFTMAX:
            self._remember(result)
        elif isinstance(result, Tensor):
            self._follow(func, [*args, *(kwargs or {}).values()], result)
        return result

    def _follow(self, func: Any, given: list[Any], result: Tensor) -> None:
        """What becomes of weights that are known."""
        if func is torch.einsum and len(given) == 2 and isinstance(given[1], (tuple, list)):
            given = [given[0], *given[1]]
        tensors = [x for x in given if isinstance(x, Tensor)]
        known = [x for x in tensors if self._known(x)]
        if not known:
            return
        if func in PRODUCTS or func is torch.einsum:
            if len(tensors) == 2:
                equation = given[0] if func is torch.einsum and isinstance(given[0], str) else None
                self._multiplied(tensors[0], tensors[1], result, equation)
        elif getattr(func, "__name__", "") in KEEPING and (len(tensors) == 1 or result.shape == known[0].shape):
            self._remember(result)

    def _multiplied(self, weights: Tensor, values: Tensor, result: Tensor, equation: str | None) -> None:
        """A product with weights. Those of experts, which multiply what belongs to one row alone, mix no tokens."""
        if self._known(weights) and self._known(values):
            self.capture.note(None, _product_of_weights)
            return
        if not self._known(weights):
            if equation is None:
                return
            weights, values, equation = values, weights, turned(equation)
        if equation is not None:
            may_mix = bool(Axes.of(equation).row)
        else:
            rows, columns = weights.shape[-2:] if weights.dim() >= 2 else (0, 1)
            of_tokens = weights.dim() >= 3 and self.capture.length in (None, rows, columns)
            may_mix = values.dim() == weights.dim() and (of_tokens or rows == columns)
        if may_mix:
            self.capture.note(None, lambda name: product_call(self.capture, name, weights, values, result, equation))

    def _remember(self, weights: Tensor) -> None:
        key = id(weights)

        def forget(_: weakref.ref[Tensor]) -> None:
            self.weights.pop(key, None)

        self.weights[key] = weakref.ref(weights, forget)

    def _known(self, x: Tensor) -> bool:
        found = self.weights.get(id(x))
        return found is not None and found() is x


def _product_of_weights(name: str) -> MixerCall:
    raise Refused("a product of two softmaxes, before it meets values")


def sdpa_call(capture: Capture, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> MixerCall:
    """A call of `scaled_dot_product_attention`: queries `[B, H, L, E]`."""
    a = _sdpa_arguments(*args, **kwargs)
    mask = a["attn_mask"]
    query, key, value, y = (batch_and_heads(x, capture, name) for x in (a["query"], a["key"], a["value"], output))
    if y.shape != output.shape and mask is not None and mask.dim() > 2:
        raise Refused("a mask of pairs beside axes in another order than batch and heads")
    check_lengths(query, key, capture.length)
    if a["dropout_p"]:
        raise Refused(f"dropout of {a['dropout_p']} in training: call model.eval() first")
    if mask is None and not a["is_causal"]:
        raise Refused("bidirectional: no mask, and is_causal is False")

    def again(values: Tensor) -> Tensor:
        return SDPA(**a | {"query": query, "key": key, "value": values})

    return MixerCall(
        name,
        "attention",
        "torch",
        values=value,
        output=y,
        operator=lambda padding: attention(query, key, scale=a["scale"], attn_mask=mask, attention_mask=padding),
        one_hot=again,
        any_width=True,
        attention_mask=capture.attention_mask,
        time_by_size=True,
    )


def _sdpa_arguments(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> dict[str, Any]:
    return dict(locals())


def product_call(
    capture: Capture, name: str, weights: Tensor, values: Tensor, output: Tensor, equation: str | None = None
) -> MixerCall:
    """Weights `[..., L, L]`, the result of a softmax, times values `[..., L, dv]`, by a product or an einsum."""
    if equation is not None:
        weights, values, output = as_product(equation, weights, values, output)
    length = capture.length
    square = weights.dim() >= 3 and weights.shape[-1] == weights.shape[-2]
    if not square or values.dim() != weights.dim() or values.shape[-2] != weights.shape[-1]:
        raise Refused(f"a softmax of shape {list(weights.shape)}: expected [B, H, L, L]")
    if length is not None and weights.shape[-1] != length:
        raise Refused(f"a softmax over {weights.shape[-1]} where the sequence has {length} tokens")
    T, u, y = (batch_and_heads(x, capture, name) for x in (weights, values, output))
    return MixerCall(
        name,
        "attention",
        "torch",
        values=u,
        output=y,
        operator=lambda padding: dense(refuse_future(T, padding), attention_mask=padding),
        one_hot=None,
        attention_mask=capture.attention_mask,
        check=ATTRIBUTION_ONLY,
        time_by_size=True,
    )


class Axes(NamedTuple):
    """The letters of an einsum of weights and values: `batch` of both, `row` and `channel` of the result too."""

    batch: list[str]
    row: list[str]
    column: list[str]
    channel: list[str]

    @classmethod
    def of(cls, equation: str) -> Axes:
        first, second, result = operands(equation)
        return cls(
            [letter for letter in first if letter in second and letter in result],
            [letter for letter in first if letter not in second and letter in result],
            [letter for letter in first if letter in second and letter not in result],
            [letter for letter in second if letter not in first and letter in result],
        )


def operands(equation: str) -> tuple[str, str, str]:
    """The letters of the first operand, of the second one and of the result."""
    given, _, result = equation.replace(" ", "").partition("->")
    first, _, second = given.partition(",")
    return first, second, result


def turned(equation: str) -> str:
    """The einsum of the operands in the other order."""
    first, second, result = operands(equation)
    return f"{second},{first}->{result}"


def as_product(equation: str, weights: Tensor, values: Tensor, output: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The tensors of an einsum with their axes in the order of a batched product of matrices.

    Raises:
        Refused: the einsum is no product of the weights' last axis with the values.
    """
    first, second, result = operands(equation)
    batch, row, column, channel = Axes.of(equation)
    one_each = len(row) == len(column) == len(channel) == 1
    all_there = sorted(result) == sorted([*batch, *row, *channel]) and "." not in equation
    if not one_each or not all_there or first[-1:] != column[0]:
        raise Refused(f"a softmax in einsum({equation!r}): expected a product over its last axis")

    def ordered(x: Tensor, letters: str, order: list[str]) -> Tensor:
        return x.permute(*[letters.index(letter) for letter in order])

    return (
        ordered(weights, first, batch + row + column),
        ordered(values, second, batch + column + channel),
        ordered(output, result, batch + row + channel),
    )


def seen_inside(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of torch that is written in Python, such that the mode sees the functions which it calls.

    The code is torch's own. Only its question whether a mode wants to have the call, which is why the mode has it, is
    answered with no.
    """
    code, names = function.__code__, function.__globals__ | {"has_torch_function": lambda tensors: False}
    inside = types.FunctionType(code, names, function.__name__, function.__defaults__, function.__closure__)
    inside.__kwdefaults__ = function.__kwdefaults__
    return inside


def batch_and_heads(x: Tensor, capture: Capture, name: str) -> Tensor:
    """`[B, H, ., .]` of a tensor whose leading axes are batch and heads, in either order or in one axis.

    Raises:
        Refused: which of them is the batch cannot be told.
    """
    leading, rows = x.shape[:-2], capture.rows
    if rows is None or (rows == 1 and len(leading) == 1):
        return x[None] if len(leading) == 1 else x.flatten(1, -3)
    if is_open(leading, rows) and rows > 1:
        batch_first = capture.batch_first.get(name)
        if batch_first is None or x.shape[0] % rows:
            raise Refused(f"axes {list(leading)} of {rows} rows: which is the batch cannot be told from sizes")
        if len(leading) == 1:
            return x.unflatten(0, (rows, -1)) if batch_first else x.unflatten(0, (-1, rows)).transpose(0, 1)
        return x.flatten(1, -3) if batch_first else x.transpose(0, 1).flatten(1, -3)
    if leading[0] != rows:
        raise Refused(f"axes {list(leading)} of {rows} rows: expected the batch first")
    return x.flatten(1, -3)
