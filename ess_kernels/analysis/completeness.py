"""Whether every module that mixes over time was seen, and what to say of one that was not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from ess_kernels.capture import Mixing, mixing_modules, rows_first
from ess_kernels.capture.registry import OTHER_AXIS

from .forward import short_length, shortened
from .selection import is_selected, modules_around

# what reaches no further than this is a shift or a short convolution, whose state is as many tokens
SHORT_REACH = 4
SHORT = "reaches a few tokens only, as a shift or a short convolution does"  # the reason of such a module begins so


def find_mixing(model: nn.Module, arguments: Mapping[str, Any], batch: int, length: int) -> tuple[Mixing, list[str]]:
    """Which modules mix over time, and a note if that could not be found.

    One row of a few tokens is enough; where a model does not take that, all rows and then all tokens are tried.
    """
    short = short_length(model, length)
    reason = "none was found"
    for rows, tokens in ((1, short), (batch, short), (batch, length)):
        try:
            found = mixing_modules(model, shortened(arguments, rows, batch, tokens, length), tokens)
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            continue
        if found.modules:
            return found, []
    return Mixing(), [f"Which modules mix over time could not be tried: {reason}"]


def batch_axes(model: nn.Module, arguments: Mapping[str, Any], batch: int, length: int) -> dict[str, bool]:
    """By module, whether the batch comes before the heads, where sizes do not tell; see `rows_first`."""
    if batch < 2:
        return {}
    short = short_length(model, length)
    try:
        some, first = (shortened(arguments, rows, batch, short, length) for rows in (batch, 1))
        return rows_first(model, some, first, batch)
    except Exception:  # a model that takes no shorter input: such calls are refused
        return {}


def expected_mixers(mixing: Mixing, patterns: list[str] | None) -> int:
    """How many mixers there will be, for the progress bar."""
    found = [m for m in mixing.modules.values() if m.reach > SHORT_REACH and is_selected(m.name, patterns)]
    return max(len(found), 1)


def doubt(name: str, by_sizes: bool, mixing: Mixing) -> str | None:
    """Why a mixer's call is not believed to mix over time as it seems to; None if nothing speaks against it.

    Args:
        name: the module that made the call.
        by_sizes: whether the axis of the time was told by its size alone.
        mixing: what was found out about the model.
    """
    own = mixing.modules.get(name)
    if own is not None and own.sees_future:
        return f"bidirectional: earlier outputs of {own.kind} depend on later tokens"
    around = [*modules_around(name), ""]
    for outer in around:
        inside = [
            m for m in mixing.modules.values() if outer == "" or m.name == outer or m.name.startswith(f"{outer}.")
        ]
        if outer in mixing.backward and not any(m.sees_future for m in inside):
            return (
                f"runs over the tokens in another order than the model: earlier outputs of {outer or 'the model'} "
                "depend on later tokens, and nothing inside of it sees the future"
            )
    known = {*mixing.modules, *mixing.failed}
    if by_sizes and mixing.modules and not any(outer in known for outer in around):
        return f"{OTHER_AXIS}: {name or 'the model'} does not mix over time by itself"
    return None


def unseen(mixing: Mixing, seen: Sequence[str], patterns: list[str] | None) -> dict[str, str]:
    """Modules that mix over time, and of which no seam has told anything, with the reason."""
    calls = {name.partition("[")[0] for name in seen}
    reasons = {}
    for name, module in mixing.modules.items():
        # a call stands for what is inside of its module, unless both mix by themselves
        inside = any(name.startswith(f"{call}.") for call in calls if call and call not in mixing.modules)
        # a call that was made by a part of this module that does not mix by itself, such as a softmax
        of_a_part = any(call.startswith(f"{name}.") and call not in mixing.modules for call in calls)
        if name in calls or inside or of_a_part or not is_selected(name, patterns):
            continue
        if module.sees_future:
            reasons[name] = f"bidirectional: earlier outputs of {module.kind} depend on later tokens"
        elif module.reach <= SHORT_REACH and not module.complete:
            reasons[name] = f"{SHORT} ({module.kind}): not measured, its state is the last {module.reach} tokens"
        else:
            reasons[name] = f"unknown mixer: {module.kind} mixes over time, and no seam has seen how"
    for name, reason in mixing.failed.items():
        if name not in calls and is_selected(name, patterns):
            reasons[name] = f"whether it mixes over time could not be tried: {reason}"
    return reasons


def nothing_captured(model: nn.Module, skipped: Mapping[str, str], patterns: list[str] | None) -> str:
    kind = type(model).__name__
    if patterns is not None and not skipped:
        return f"layers: no mixer of {kind} is in the modules asked for, {', '.join(patterns)}"
    if skipped:
        name, reason = next(iter(skipped.items()))
        return f"no mixer of {kind} could be used; {len(skipped)} were skipped, the first, {name}: {reason}"
    compiled = any(hasattr(m.forward, "_torchdynamo_orig_callable") for m in model.modules())
    if compiled:
        return (
            f"no mixer of {kind} was seen: a part of it is compiled (torch.compile), and compiled code does not pass "
            "by the seams; analyze the model before it is compiled"
        )
    return (
        f"no mixer of {kind} was seen: no module of it mixes over time, or its forward pass does not go through "
        "torch.nn.Module.__call__"
    )
