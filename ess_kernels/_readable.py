"""Which tensors hold numbers that can be read, and what becomes of a call with those that do not.

The metrics look at numbers where they lie in memory. Some tensors have none, or others than those that count: a tensor
of a graph being traced, a fake or a meta tensor, a view with a pending sign, a batch of `torch.func.vmap`. A call with
one of these goes through PyTorch's dispatcher, which answers with a shape or makes an ordinary tensor of it, or it is
refused by name. Never is it read as if it were an ordinary one.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

_TRACERS = tuple(getattr(torch._C._TorchDispatchModeKey, name) for name in ("FAKE", "PROXY", "FUNCTIONAL"))


def check_plain(name: str, x: Tensor) -> None:
    """`TypeError` for a tensor that is sparse, nested, of another layout without strides, or masked and the like."""
    if x.is_nested:
        raise TypeError(f"{name}: expected a plain tensor, got a nested one: pass its sequences one by one, or padded")
    if x.layout is not torch.strided:
        raise TypeError(f"{name}: expected a strided tensor, got {x.layout}: pass it as {name}.to_dense()")
    if not torch.compiler.is_compiling() and _is_wrapper(x) and not _is_fake(x):
        raise TypeError(
            f"{name}: expected a plain tensor, got a {type(x).__name__}, which keeps its numbers elsewhere: pass the "
            "plain tensor that it holds"
        )


def any_dtensor(values: Iterable[Any]) -> bool:
    """Whether one of the values is a DTensor; the module of these is not imported for it."""
    if torch.compiler.is_compiling():
        return False
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and any(isinstance(x, module.DTensor) for x in values)


def must_be_dispatched(name: str, tensors: Sequence[Tensor]) -> bool:
    """Whether a call with these tensors must go through its custom op; raises as `without_numbers` does."""
    return without_numbers(name, tensors) or any(x.is_neg() or x._is_zerotensor() for x in tensors)


def without_numbers(name: str, tensors: Sequence[Tensor], *, gradients: bool = False) -> bool:
    """Whether these tensors stand for numbers that are not there: of a graph being traced, fake or meta ones.

    With `gradients` tensors of `torch.func.grad` and `vjp` will do: their numbers can be read.

    Raises:
        NotImplementedError: a transform of `torch.func`, with what to do instead.
        ValueError: an ordinary tensor inside of FakeTensorMode.
    """
    if torch.compiler.is_compiling():
        return True
    traced = _traced()
    mode = torch._C._get_dispatch_mode(_TRACERS[0]) if traced else None
    for x in tensors:
        if torch._C._functorch.is_functorch_wrapped_tensor(x) and not (gradients and _tracks_gradients_only(x)):
            raise NotImplementedError(
                f"{name}: transforms of torch.func (vmap, jvp, ...) are not supported, but for grad and vjp of "
                "entropy_ess, soft_ess and nuclear_norm: give vmap's dimension as a leading batch dimension, and take "
                "other gradients by torch.autograd"
            )
        wrapper = _is_wrapper(x)
        if mode is not None and not (wrapper or mode.allow_non_fake_inputs):
            raise ValueError(f"{name}: expected fake tensors inside of FakeTensorMode, got one with numbers")
        traced = traced or wrapper or x.is_meta
    return traced


def check_readable(name: str, tensors: Sequence[Tensor]) -> None:
    """As `must_be_dispatched`, for what has no custom op: `NotImplementedError` unless numbers can be read in place."""
    if not torch.compiler.is_compiling() and must_be_dispatched(name, tensors):
        raise NotImplementedError(
            f"{name}: expected tensors with numbers in memory, got fake or meta ones, or a lazy negation "
            "(tensor.resolve_neg() makes it an ordinary tensor)"
        )


def refuse_tangents(name: str, tensors: Sequence[Tensor]) -> None:
    """`NotImplementedError` where a derivative is asked for in forward mode: it would be lost without a word."""
    forward = torch.autograd.forward_ad
    if torch.compiler.is_compiling() or forward._current_level < 0:
        return
    if any(forward.unpack_dual(x).tangent is not None for x in tensors):
        raise NotImplementedError(
            f"{name}: derivatives in forward mode (torch.autograd.forward_ad) are not supported: take the gradient of "
            "entropy_ess by torch.autograd, or pass torch.autograd.forward_ad.unpack_dual(x).primal"
        )


def _tracks_gradients_only(x: Tensor) -> bool:
    """Whether nothing but `torch.func.grad`, `vjp` and the like is behind a tensor of a transform."""
    while torch._C._functorch.is_gradtrackingtensor(x):
        x = torch._C._functorch.get_unwrapped(x)
    return not torch._C._functorch.is_functorch_wrapped_tensor(x)


def _traced() -> bool:
    """Whether operations are being recorded, or answered without numbers, outside of `torch.compile`."""
    if not torch._C._len_torch_dispatch_stack():
        return False
    return any(torch._C._get_dispatch_mode(key) is not None for key in _TRACERS)


def _is_wrapper(x: Tensor) -> bool:
    """Whether the tensor answers operations itself; subclasses that only add methods do not."""
    return type(x).__torch_dispatch__ is not Tensor.__torch_dispatch__


def _is_fake(x: Tensor) -> bool:
    from torch._subclasses import FakeTensor
    from torch._subclasses.functional_tensor import FunctionalTensor

    return isinstance(x, (FakeTensor, FunctionalTensor))
