"""The fuzzer's loop: a case, its truth, the questions, the verdicts, until the time is over."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch

from ... import backends as registry
from ... import operators
from ...backends.triton.runtime import interpreting
from .case import TOKEN, Case
from .dice import Dice
from .generate import make_case, relative_tolerances, some_positions, tolerances
from .judge import judge
from .oracle import Truth
from .question import Question
from .report import Report
from .shrink import shrink

ABSOLUTE, RELATIVE = 12, 4
# an interpreted backend is thousands of times slower: it has this share of the time, small cases, few tolerances
INTERPRETED_SHARE = 0.25
INTERPRETED_TOLERANCES = 3, 1
# seconds spent on making one failure smaller
MOST_SHRINKING = 20.0


def usable_backends(device: str) -> list[str]:
    """Every backend that takes tensors on this device of this machine."""
    op = operators.dense(torch.zeros(2, 2, device=device))

    def takes(name: str) -> bool:
        try:
            registry.choose(name, "tolerance_ess", op)
        except RuntimeError:
            return False
        return True

    return [name for name in registry.NAMES if takes(name)]


def fuzz(
    seconds: float,
    seed: int,
    backends: Sequence[str] | None = None,
    say: Callable[[str], None] = lambda line: None,
    most_cases: int | None = None,
    shrink_seconds: float = 120.0,
    families: Sequence[str] = (),
    device: str = "cpu",
) -> Report:
    """Tries random cases and reports; the same seed gives the same cases in the same order.

    Args:
        seconds: how long, apart from shrinking what failed.
        seed: any integer.
        backends: names; `None` means all that are usable here.
        say: told about every new kind of failure, and how far it is.
        most_cases: stop after so many.
        shrink_seconds: how long to look for smaller inputs, of all (backend, kind of failure, family) together.
        families: only operators of these constructors; none named means all. Other cases are passed over.
        device: where the operators' tensors lie.
    """
    names = list(backends) if backends is not None else usable_backends(device)
    slow = [name for name in names if name == "triton" and interpreting()]
    fast = [name for name in names if name not in slow]
    report = Report(seed, names)
    start = told = time.monotonic()
    on_slow, tried = 0.0, {True: 0, False: 0}
    while (spent := time.monotonic() - start) < seconds and (most_cases is None or report.cases < most_cases):
        small = bool(slow) and (not fast or on_slow <= INTERPRETED_SHARE * spent)
        begin = time.monotonic()
        dice = Dice(f"{seed}/{'small/' * small}{tried[small]}")
        tried[small] += 1
        case = make_case(dice, small)
        if not families or case.family in families:
            try_case(report, dice, case, slow if small else fast, small, device)
        on_slow += (time.monotonic() - begin) * small
        report.seconds = time.monotonic() - start
        if time.monotonic() - told > 60:
            told = time.monotonic()
            say(report.line())
    deadline = time.monotonic() + shrink_seconds
    for index, (key, failure) in enumerate(list(report.smallest.items())):
        say(f"looking for a smaller input: {', '.join(key)}")
        share = (deadline - time.monotonic()) / (len(report.smallest) - index)
        report.smallest[key] = shrink(failure, min(share, MOST_SHRINKING))
    return report


def try_case(report: Report, dice: Dice, case: Case, names: Sequence[str], small: bool, device: str) -> None:
    """One case on some backends."""
    truth = Truth(case, some_positions(dice, case.size(TOKEN)))
    report.cases += 1
    how_many = INTERPRETED_TOLERANCES if small else (ABSOLUTE, RELATIVE)
    for question in questions(dice, case, truth, names, *how_many):
        question = replace(question, device=device)
        report.add(question.backend, case, judge(case, truth, question))


def questions(
    dice: Dice, case: Case, truth: Truth, names: Sequence[str], many_absolute: int, many_relative: int
) -> Iterator[Question]:
    """The same tolerances of every backend."""
    positions = truth.positions.tolist()
    everywhere = dice.chance(0.5)
    absolute = tolerances(dice, case, truth, many_absolute)
    relative = relative_tolerances(dice, many_relative)
    for name in names:
        yield Question("atol", name, positions, everywhere, absolute)
        yield Question("rtol", name, positions, everywhere, relative)
        yield Question("entropy", name, positions, everywhere)
