"""Which modules of a model mix over time: found by trying, so that it does not depend on what any seam knows.

While the model runs on a few tokens, every module is run a second time, with another number in place of one token.
Where the output changes at other tokens, the module mixes over time. What mixes inside of it is held still meanwhile,
but for that one token, so that a module is found only for what it does itself: the attention is, the layer around it is
not.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .one_hot import is_half
from .patches import Patches, attributes_kept
from .torch_functions import use_torch_functions

# modules that never mix over time, and would only take time
PLAIN = (nn.Linear, nn.Embedding, nn.Dropout, nn.LayerNorm, nn.RMSNorm, nn.SiLU, nn.GELU, nn.ReLU, nn.Identity)
# changes of other tokens, relative to that of the changed one, that are no rounding errors
CHANGE = 1e-5
CHANGE_HALF = 5e-3
CHANGE_QUANTISED = 1e-1  # tokens share the scale to which a quantised layer rounds them


@dataclass(frozen=True)
class MixingModule:
    """A module that mixes over time.

    Attributes:
        name: as in `model.named_modules()`.
        kind: the name of its class.
        reach: how many tokens further a token's effect was seen, 0 if only before it.
        sees_future: whether outputs before a token depend on it.
        complete: whether the effect reached the last token of the trial, so that `reach` is only a lower bound.
    """

    name: str
    kind: str
    reach: int
    sees_future: bool
    complete: bool


def mixing_modules(
    model: nn.Module, inputs: dict[str, Any], length: int
) -> tuple[dict[str, MixingModule], dict[str, str]]:
    """The modules that mix over time, by name, found while `model(**inputs)` runs; and those that could not be tried.

    Args:
        model: in eval mode; it is left as it was.
        inputs: keyword arguments of the model, of a few tokens: every module is run several times.
        length: the number of tokens of a row. It should be the size of no other axis.

    Returns:
        the modules that mix; and by name the error of a module that failed when it ran a second time.

    Raises:
        whatever the model raises.
    """
    with Patches() as patches, attributes_kept(model), torch.no_grad(), torch.random.fork_rng(devices=[]):
        use_torch_functions(model, patches)
        trial = _Trial(model, length, patches)
        model(**inputs)
    return trial.found, trial.failed


class _Trial:
    def __init__(self, model: nn.Module, length: int, patches: Patches):
        self.length = length
        self.token = length // 4
        self.found: dict[str, MixingModule] = {}
        self.failed: dict[str, str] = {}
        # by module that mixes, its own or through others: the outputs of its calls, in order
        self.outputs: dict[nn.Module, list[Any]] = {}
        self.repeating = False
        self.quantised = any("quantiz" in type(module).__module__ for module in model.modules())
        for name, module in model.named_modules():
            if not isinstance(module, PLAIN):
                patches.hook(module.register_forward_hook(self._after(name), with_kwargs=True))

    def _after(self, name: str) -> Any:
        def after(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            if self.repeating:
                return
            try:
                self._try(name, module, args, kwargs, output)
            except Exception as error:
                self.failed[name] = f"{type(error).__name__}: {error}"

        return after

    def _try(self, name: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        given = _hidden_states(args, kwargs, self.length)
        passed_on = _over_time(output, self.length)
        inner = [child for child in module.modules() if child in self.outputs and child is not module]
        if not given or not passed_on:
            return
        with self._repeat():
            again = self._run(module, args, kwargs, given, {})
            changed = self._changed(passed_on, _over_time(again, self.length))
            if not changed.any():
                return
            # the calls of this run, for modules around this one
            self.outputs.setdefault(module, []).append(_detached(output))
            if inner:
                held = {child: list(self.outputs[child]) for child in inner}
                again = self._run(module, args, kwargs, given, held)
                changed = self._changed(passed_on, _over_time(again, self.length))
        for child in inner:
            self.outputs[child].clear()
        if not changed.any():
            return
        later = torch.nonzero(changed[self.token :]).flatten()
        reach = int(later.max()) if len(later) else 0
        before = self.found.get(name)
        self.found[name] = MixingModule(
            name,
            type(module).__name__,
            max(reach, before.reach if before else 0),
            bool(changed[: self.token].any()) or bool(before and before.sees_future),
            bool(changed[-1]) or bool(before and before.complete),
        )

    @contextmanager
    def _repeat(self) -> Iterator[None]:
        self.repeating = True
        try:
            yield
        finally:
            self.repeating = False

    def _run(
        self, module: nn.Module, args: Any, kwargs: Any, given: list[Tensor], held: dict[nn.Module, list[Any]]
    ) -> Any:
        """The output where one token of `given` is another one; what `held` has returned is kept but for that token."""
        others = {id(x): self._other(x) for x in given}

        def replaced(x: Any) -> Any:
            # a cache holds the keys of the first run already
            return others.get(id(x), None if "Cache" in type(x).__name__ else x)

        with attributes_kept(module), Patches() as patches:
            for child, outputs in held.items():
                patches.hook(child.register_forward_hook(self._hold(outputs)))
            return module(*_mapped(args, replaced), **_mapped(kwargs, replaced))

    def _other(self, x: Tensor) -> Tensor:
        """`x` with another token: its numbers in reverse, and noise of the size of all numbers."""
        other = x.clone()
        token = other.select(_time_axis(x, self.length) or 0, self.token)
        noise = torch.randn(token.shape, generator=torch.Generator().manual_seed(0)).to(token)
        token.copy_(token.flip(-1) + noise * x.float().square().mean().sqrt().to(token))
        return other

    def _hold(self, outputs: list[Any]) -> Any:
        """A hook that gives the outputs of before, but for the token that is another one."""

        def hold(module: nn.Module, args: Any, output: Any) -> Any:
            return _merged(outputs.pop(0), output, self._kept) if outputs else output

        return hold

    def _kept(self, before: Tensor, now: Tensor) -> Tensor:
        """`before`, with the changed token of `now`."""
        axis = _time_axis(now, self.length)
        if axis is None or before.shape != now.shape:
            return now
        kept = before.clone()
        kept.select(axis, self.token).copy_(now.select(axis, self.token))
        return kept

    def _changed(self, before: list[Tensor], after: list[Tensor]) -> Tensor:
        """bool `[L]`: the other tokens of which some output has changed."""
        changed = torch.zeros(self.length, dtype=torch.bool)
        if len(before) == len(after):
            for x, y in zip(before, after):
                if x.shape == y.shape:
                    changed |= self._changed_in(x, y).cpu()
        return changed

    def _changed_in(self, before: Tensor, after: Tensor) -> Tensor:
        axis = _time_axis(before, self.length) or 0
        change = (after.double() - before.double()).abs().nan_to_num(0.0).movedim(axis, 0).flatten(1).amax(1)
        own = float(change[self.token])
        change[self.token] = 0
        reference = own if own > 0 else float(before.double().abs().max())
        bound = CHANGE_QUANTISED if self.quantised else CHANGE_HALF if is_half(before.dtype) else CHANGE
        return change > bound * reference


def _hidden_states(args: Any, kwargs: Any, length: int) -> list[Tensor]:
    """What a module works on: all tensors of floats over time among its arguments, but for masks and positions."""
    given = [*args, *(x for key, x in kwargs.items() if "mask" not in key and "position" not in key)]
    return [x for x in _tensors(given) if x.is_floating_point() and x.dim() > 1 and _time_axis(x, length) is not None]


def _tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in nested tuples, lists and dictionaries."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list, dict)):
        for x in value.values() if isinstance(value, dict) else value:
            yield from _tensors(x)


def _mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    """The same nested tuples, lists and dictionaries, with everything else changed."""
    if isinstance(value, dict):
        mapped = copy.copy(value)
        for key, x in value.items():
            mapped[key] = _mapped(x, change)
        return mapped
    if isinstance(value, (tuple, list)):
        return _like(value, [_mapped(x, change) for x in value])
    return change(value)


def _time_axis(x: Tensor, length: int) -> int | None:
    return next((axis for axis, size in enumerate(x.shape) if size == length), None)


def _over_time(output: Any, length: int) -> list[Tensor]:
    """The floating-point tensors over time of whatever a module returns."""
    return [x for x in _tensors(output) if x.is_floating_point() and _time_axis(x, length) is not None]


def _merged(before: Any, now: Any, merge: Callable[[Tensor, Tensor], Tensor]) -> Any:
    """What a module returned now, each floating-point tensor merged with the one of before at the same place."""
    if isinstance(now, Tensor):
        return merge(before, now) if isinstance(before, Tensor) and now.is_floating_point() else now
    if isinstance(now, dict):
        merged = copy.copy(now)
        for key, x in now.items():
            merged[key] = _merged(before.get(key) if isinstance(before, dict) else None, x, merge)
        return merged
    if isinstance(now, (tuple, list)) and isinstance(before, (tuple, list)) and len(before) == len(now):
        return _like(now, [_merged(b, x, merge) for b, x in zip(before, now)])
    return now


def _detached(output: Any) -> Any:
    """Copies of the tensors, for modules may change what they are given in place."""
    return _mapped(output, lambda x: x.clone() if isinstance(x, Tensor) else x)


def _like(output: Any, items: list[Any]) -> Any:
    """A tuple, a named tuple or a list of the same type."""
    return type(output)(*items) if hasattr(output, "_fields") else type(output)(items)
