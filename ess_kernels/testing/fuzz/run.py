"""The fuzzer's loop: a case, its truth, the questions, the verdicts, until the time is over."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

from ... import backends as registry
from ...backends.triton.runtime import interpreting
from .case import TOKEN, Case
from .dice import Dice
from .generate import make_case, relative_tolerances, some_positions, tolerances
from .judge import judge
from .oracle import Truth
from .question import Question
from .report import Report
from .shrink import SECONDS, shrink

ABSOLUTE, RELATIVE = 12, 4
# an interpreted backend is hundreds of times slower: every so many cases, and small ones only
SELDOM = 8


def usable_backends() -> list[str]:
    """Every backend that runs on this machine."""
    return [status.name for status in registry.describe() if status.usable]


def fuzz(
    seconds: float,
    seed: int,
    backends: Sequence[str] | None = None,
    say: Callable[[str], None] = lambda line: None,
    most_cases: int | None = None,
    shrink_seconds: float = SECONDS,
) -> Report:
    """Tries random cases and reports; the same seed gives the same cases in the same order.

    Args:
        seconds: how long, apart from shrinking what failed.
        seed: any integer.
        backends: names; `None` means all that are usable here.
        say: told about every new kind of failure, and how far it is.
        most_cases: stop after so many.
        shrink_seconds: how long to look for a smaller input, of each (backend, kind of failure, family).
    """
    names = list(backends) if backends is not None else usable_backends()
    report = Report(seed, names)
    start = told = time.monotonic()
    number = 0
    while time.monotonic() - start < seconds and (most_cases is None or number < most_cases):
        try_case(report, seed, number)
        number += 1
        if time.monotonic() - told > 60:
            told = time.monotonic()
            say(f"{(told - start) / 60:.1f} min: {report.line()}")
    report.seconds = time.monotonic() - start
    for key, failure in list(report.smallest.items()):
        say(f"looking for a smaller input: {', '.join(key)}")
        report.smallest[key] = shrink(failure, shrink_seconds)
    return report


def try_case(report: Report, seed: int, number: int) -> None:
    """One case on every backend of the report."""
    dice = Dice(f"{seed}/{number}")
    slow = "triton" if interpreting() else ""
    seldom = number % SELDOM == SELDOM - 1
    names = [name for name in report.backends if name != slow or seldom]
    if not names:
        return
    case = make_case(dice, small=slow in names)
    positions = some_positions(dice, case.size(TOKEN))
    truth = Truth(case, positions)
    report.cases += 1
    for question in questions(dice, case, truth, names):
        report.add(question.backend, case, judge(case, truth, question))


def questions(dice: Dice, case: Case, truth: Truth, names: Sequence[str]) -> Iterator[Question]:
    """The same tolerances of every backend."""
    positions = truth.positions.tolist()
    everywhere = dice.chance(0.5)
    absolute = tolerances(dice, case, truth, ABSOLUTE)
    relative = relative_tolerances(dice, RELATIVE)
    for name in names:
        yield Question("atol", name, positions, everywhere, absolute)
        yield Question("rtol", name, positions, everywhere, relative)
        yield Question("entropy", name, positions, everywhere)
