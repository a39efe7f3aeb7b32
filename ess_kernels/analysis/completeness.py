"""Whether every module that mixes over time was seen, and what to say of one that was not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from ess_kernels.capture import MixingModule, mixing_modules

from .forward import short_length, shortened
from .selection import is_selected

# what reaches no further than this is a shift or a short convolution, whose state is as many tokens
SHORT_REACH = 4
SHORT = "a shift or short convolution"  # the reason of such a module begins so


def find_mixing(
    model: nn.Module, arguments: Mapping[str, Any], batch: int, length: int
) -> tuple[dict[str, MixingModule], list[str]]:
    """The modules that mix over time, and a note if they could not be found.

    One row of a few tokens is enough; where a model does not take that, all rows and then all tokens are tried.
    """
    short = short_length(model, length)
    reason = "none was found"
    for rows, tokens in ((1, short), (batch, short), (batch, length)):
        try:
            found, failed = mixing_modules(model, shortened(arguments, rows, batch, tokens, length), tokens)
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            continue
        if found:
            return found, [f"{name} could not be tried for mixing over time: {why}" for name, why in failed.items()]
    return {}, [f"Which modules mix over time could not be tried: {reason}"]


def expected_mixers(mixing: Mapping[str, MixingModule], names: list[str] | None) -> int:
    """How many mixers there will be, for the progress bar."""
    found = [m for m in mixing.values() if m.reach > SHORT_REACH and is_selected(m.name, names)]
    return max(len(found), 1)


def unseen(mixing: Mapping[str, MixingModule], seen: Sequence[str], names: list[str] | None) -> dict[str, str]:
    """Modules that mix over time, and of which no seam has told anything, with the reason."""
    calls = {name.partition("[")[0] for name in seen}
    reasons = {}
    for name, module in mixing.items():
        inside = any(name == call or name.startswith(f"{call}.") for call in calls if call)
        # a call that was made by a part of this module that does not mix by itself, such as a softmax
        of_a_part = any(call.startswith(f"{name}.") and call not in mixing for call in calls)
        if inside or of_a_part or not is_selected(name, names):
            continue
        if module.sees_future:
            reasons[name] = f"bidirectional: earlier outputs of {module.kind} depend on later tokens"
        elif module.reach <= SHORT_REACH and not module.complete:
            reasons[name] = f"{SHORT} ({module.kind}): not measured, its state is the last {module.reach} tokens"
        else:
            reasons[name] = f"unknown mixer: {module.kind} mixes over time, and no seam has seen how"
    return reasons


def nothing_captured(model: nn.Module, skipped: Mapping[str, str]) -> str:
    kind = type(model).__name__
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
