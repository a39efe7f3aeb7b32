"""Which modules of a model mix over time: found by trying, so that it does not depend on what any seam knows.

While the model runs on a few tokens, every module is run again, with another number in place of one token. Where the
output changes at other tokens, the module mixes over time. What mixes inside of it is held still meanwhile, but for
that one token, so that a module is found only for what it does itself: the attention is, the layer around it is not.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from .nested import mapped, merged, tensors_in
from .one_hot import is_half
from .patches import Patches, attributes_kept
from .torch_functions import use_torch_functions

# modules that never mix over time, and would only take time; not their subclasses, which may do anything
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
    reach: int = 0
    sees_future: bool = False
    complete: bool = False


@dataclass(frozen=True)
class Mixing:
    """What was found out about a model's modules.

    Attributes:
        modules: those that mix over time by what they do themselves, by name.
        failed: by name, why a module could not be tried.
        backward: names of modules of which earlier outputs depend on later tokens, by themselves or by what is inside.
    """

    modules: dict[str, MixingModule] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    backward: set[str] = field(default_factory=set)


def mixing_modules(model: nn.Module, inputs: dict[str, Any], length: int) -> Mixing:
    """The modules that mix over time, found while `model(**inputs)` runs.

    Args:
        model: in eval mode; its tensors are left as they were, recurrent states among them.
        inputs: keyword arguments of the model, of a few tokens: every module is run several times.
        length: the number of tokens of a row. It should be the size of no other axis.

    Raises:
        whatever the model raises.
    """
    kept = attributes_kept(model, tensors_only=True)
    with Patches() as patches, kept, torch.no_grad(), torch.random.fork_rng(devices=[]):
        use_torch_functions(model, patches)
        trial = _Trial(model, length, patches)
        model(**inputs)
    return trial.mixing


class _Trial:
    def __init__(self, model: nn.Module, length: int, patches: Patches):
        self.length = length
        # the first token, which a mixer may treat unlike all others, and one with tokens before it
        self.tokens = (length // 4, 0)
        self.mixing = Mixing()
        # by module that mixes, itself or by what is inside: the outputs of its calls, in order
        self.outputs: dict[nn.Module, list[Any]] = {}
        self.repeating = False
        self.quantised = any("quantiz" in type(module).__module__ for module in model.modules())
        for name, module in model.named_modules():
            if type(module) not in PLAIN:
                patches.hook(module.register_forward_hook(self._after(name), with_kwargs=True))

    def _after(self, name: str) -> Any:
        def after(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            if self.repeating:
                return
            self.repeating = True
            try:
                self._try(name, module, args, kwargs, output)
            except Exception as error:
                self.mixing.failed[name] = f"{type(error).__name__}: {error}"
            finally:
                self.repeating = False

        return after

    def _try(self, name: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        given, passed_on = _given(args, kwargs, self.length), self._over_time(output)
        if not given or not passed_on:
            return
        if not any(x.isfinite().any() for x in passed_on):
            self.mixing.failed[name] = "no number that it passes on is finite"
            return
        inner = [child for child in module.modules() if child in self.outputs and child is not module]
        mixes = False
        for token in self.tokens:
            run = _Run(module, args, kwargs, given, self.length, token)
            changed = self._changed(passed_on, self._over_time(run({})), token)
            if not changed.any():
                continue
            mixes = True
            if changed[:token].any():
                self.mixing.backward.add(name)
            if inner:
                held = {child: list(self.outputs[child]) for child in inner}
                changed = self._changed(passed_on, self._over_time(run(held)), token)
            if changed.any():
                self._found(name, module, changed, token)
        if mixes:
            # modules around this one hold it still, and so what is inside of it
            self.outputs.setdefault(module, []).append(mapped(output, _copy))
            for child in inner:
                self.outputs[child].clear()

    def _found(self, name: str, module: nn.Module, changed: Tensor, token: int) -> None:
        known = self.mixing.modules.get(name, MixingModule(name, type(module).__name__))
        later = torch.nonzero(changed[token:]).flatten()
        self.mixing.modules[name] = replace(
            known,
            reach=max(known.reach, int(later.max()) if len(later) else 0),
            sees_future=known.sees_future or bool(changed[:token].any()),
            complete=known.complete or bool(changed[-1]),
        )

    def _over_time(self, output: Any) -> list[Tensor]:
        """The floating-point tensors over time of whatever a module returns."""
        return [x for x in tensors_in(output) if x.is_floating_point() and _time_axis(x, self.length) is not None]

    def _changed(self, before: list[Tensor], after: list[Tensor], token: int) -> Tensor:
        """bool `[L]`: the other tokens of which some output has changed."""
        changed = torch.zeros(self.length, dtype=torch.bool)
        for x, y in zip(before, after):
            if len(before) == len(after) and x.shape == y.shape:
                changed |= self._changed_in(x, y, token).cpu()
        return changed

    def _changed_in(self, before: Tensor, after: Tensor, token: int) -> Tensor:
        axis = _time_axis(before, self.length) or 0
        change = (after.double() - before.double()).abs().nan_to_num(0.0).movedim(axis, 0).flatten(1).amax(1)
        own = float(change[token])
        change[token] = 0
        reference = own if own > 0 else float(before.double().abs().nan_to_num(0.0).max())
        bound = CHANGE_QUANTISED if self.quantised else CHANGE_HALF if is_half(before.dtype) else CHANGE
        return change > bound * reference


class _Run:
    """A module's call, again, with another number in place of one token."""

    def __init__(self, module: nn.Module, args: Any, kwargs: Any, given: list[Tensor], length: int, token: int):
        self.module, self.args, self.kwargs = module, args, kwargs
        self.length, self.token = length, token
        self.others = {id(x): self._other(x) for x in given}

    def __call__(self, held: dict[nn.Module, list[Any]]) -> Any:
        """The output; what the modules in `held` have returned is kept but for the token."""
        with attributes_kept(self.module), Patches() as patches:
            for child, outputs in held.items():
                patches.hook(child.register_forward_hook(self._hold(outputs)))
            return self.module(*mapped(self.args, self._replaced), **mapped(self.kwargs, self._replaced))

    def _replaced(self, x: Any) -> Any:
        # a cache holds the keys of the first run already
        return self.others.get(id(x), None if "Cache" in type(x).__name__ else x)

    def _other(self, x: Tensor) -> Tensor:
        """`x` with another token: its numbers in reverse, and noise of the size of all numbers; or another word."""
        axis = _time_axis(x, self.length) or 0
        other = x.clone()
        token = other.select(axis, self.token)
        if not x.is_floating_point():
            words = [x.select(axis, place) for place in range(self.length)]
            token.copy_(next((word for word in words if not torch.equal(word, token)), token))
            return other
        noise = torch.randn(token.shape, generator=torch.Generator().manual_seed(0)).to(token)
        size = x.float().nan_to_num(0.0, 0.0, 0.0).square().mean().sqrt()
        token.copy_(token.flip(-1) + noise * size.to(token))
        return other

    def _hold(self, outputs: list[Any]) -> Any:
        def hold(module: nn.Module, args: Any, output: Any) -> Any:
            return merged(outputs.pop(0), output, self._kept) if outputs else output

        return hold

    def _kept(self, before: Tensor, now: Tensor) -> Tensor:
        """`before`, with the changed token of `now`."""
        axis = _time_axis(now, self.length)
        if axis is None or before.shape != now.shape:
            return now
        kept = before.clone()
        kept.select(axis, self.token).copy_(now.select(axis, self.token))
        return kept


def _given(args: Any, kwargs: Any, length: int) -> list[Tensor]:
    """What a module works on: its arguments over time, words or numbers, but no masks and no positions."""
    named = [*(("", x) for x in args), *kwargs.items()]
    tensors = [
        (name, x) for name, value in named if "mask" not in name and "position" not in name for x in tensors_in(value)
    ]
    over_time = [(name, x) for name, x in tensors if x.dim() > 1 and _time_axis(x, length) is not None]
    return [x for name, x in over_time if x.is_floating_point() or (x.dtype == torch.int64 and _is_word(name))]


def _is_word(name: str) -> bool:
    """Whether an argument holds the tokens' numbers; an unnamed one of integers does."""
    return name in ("", "input", "inputs") or name.endswith("input_ids")


def _time_axis(x: Tensor, length: int) -> int | None:
    return next((axis for axis, size in enumerate(x.shape) if size == length), None)


def _copy(x: Any) -> Any:
    """A copy of a tensor, for modules may change in place what they are given."""
    return x.clone() if isinstance(x, Tensor) else x
