"""The smallest input that still fails in the same way: one head, one position, few tokens and states, short numbers."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from .case import HEAD, STATE, TOKEN, Case
from .judge import Failure, judge
from .oracle import Truth


def shrink(failure: Failure, seconds: float) -> Failure:
    """A smaller failure of the same kind on the same backend, or the same one if nothing smaller was found."""
    search = _Search(failure, time.monotonic() + seconds)
    search.one_head()
    search.one_position()
    for letter in (TOKEN, STATE, TOKEN):
        search.fewer(letter)
    search.unit_of_one()
    search.shorter_numbers()
    return search.best


class _Search:
    def __init__(self, failure: Failure, deadline: float):
        self.best, self.deadline = failure, deadline

    def keep_if_failing(
        self, case: Case, head: int, position: int, everywhere: bool, tolerances: Sequence[float] | None = None
    ) -> bool:
        """Whether this fails in the same way; if so, it is the best from now on."""
        length = case.size(TOKEN)
        if time.monotonic() > self.deadline or not 1 <= position < length:
            return False
        asked = self.best.question.tolerances if tolerances is None else tolerances
        question = replace(self.best.question, positions=[position], everywhere=everywhere, tolerances=asked)
        for found in judge(case, Truth(case, [position]), question).failures:
            if found.what == self.best.what and (found.what == "raised" or found.head == head):
                self.best = replace(found, head=head, position=position)
                return True
        return False

    def one_head(self) -> None:
        best = self.best
        alone = best.case.take(HEAD, torch.tensor([best.head]))
        self.keep_if_failing(alone, 0, best.position, best.question.everywhere)

    def one_position(self) -> None:
        best = self.best
        if not self.keep_if_failing(best.case, best.head, best.position, False):
            self.keep_if_failing(best.case, best.head, best.position, True)

    def fewer(self, letter: str) -> None:
        """Chunks of tokens or states are left out, large ones first."""
        chunk = self.best.case.size(letter) // 2
        while chunk and time.monotonic() < self.deadline:
            start = 0
            while start < self.best.case.size(letter):
                if not self._without(letter, start, start + chunk):
                    start += chunk
            chunk //= 2

    def _without(self, letter: str, start: int, stop: int) -> bool:
        best = self.best
        index = torch.arange(best.case.size(letter))
        index = index[(index < start) | (index >= stop)]
        if not len(index):
            return False
        before = int((index < best.position).sum()) if letter == TOKEN else best.position
        return self.keep_if_failing(best.case.take(letter, index), best.head, before, best.question.everywhere)

    def unit_of_one(self) -> None:
        """An absolute tolerance between 1 and 2, by a power of two; or else the largest entry of T near 1."""
        best = self.best
        if best.question.metric == "atol":
            power = -int(np.floor(np.log2(best.question.tolerances[0])))
        else:
            power = -int(np.floor(np.log2(Truth(best.case, [best.position]).unit)))
        moved = [tau * 2.0**power for tau in best.question.tolerances] if best.question.metric == "atol" else None
        self.keep_if_failing(best.case.scaled(power), best.head, best.position, best.question.everywhere, moved)

    def shorter_numbers(self) -> None:
        """Entries of few bits, the fewest first."""
        for bits in (2, 4, 8, 12, 24):
            rounded = {name: _rounded(x, bits) for name, x in self.best.case.inputs.items()}
            if self._try_inputs(rounded):
                return

    def _try_inputs(self, inputs: dict[str, torch.Tensor]) -> bool:
        best = self.best
        return self.keep_if_failing(
            replace(best.case, inputs=inputs), best.head, best.position, best.question.everywhere
        )


def _rounded(x: torch.Tensor, bits: int) -> torch.Tensor:
    if x.dtype == torch.bool:
        return x
    fraction, exponent = np.frexp(x.double().numpy())
    short = torch.from_numpy(np.ldexp(np.round(fraction * 2**bits), exponent - bits)).to(x.dtype)
    return torch.where(x.isfinite(), short, x)
