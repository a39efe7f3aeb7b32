"""Whether an answer is right, and if not, whether it said so.

A count is wrong only where the oracle's error bar leaves no doubt. It is excused where its certificate says
`unresolved`, or where the singular values inside the certificate's band around the tolerance are enough to explain it;
otherwise it is silent. An entropy is off if its relative error exceeds 1e-4, and silent if its certificate claims less
than that error. Where every entry is zero once all digits are kept, the entropy is 0 and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ...engine.certainty import entropy_of_values
from . import question as asking
from .case import Case
from .oracle import Truth
from .question import CountAnswer, EntropyAnswer, Question

ENTROPY_ERROR = 1e-4
# an oracle that is less sure of an entropy than this does not judge it
ENTROPY_DOUBT = 1e-5
# singular values are wanted of this many doubtful counts of a call in more digits; they speak for the rest
MOST_CONFIRMED = 32
# inputs on which a certificate may not doubt: what is written and read not much larger than what comes of it, a
# tolerance not far below the largest value nor close to one
CANCELLATION, DEPTH, DISTANCE = 1e3, 1e-6, 1e-6

# what must not be: names among a verdict's numbers
FAILURES = ("silent", "above the cap", "refused", "raised", "entropies off and not flagged", "entropies refused")


@dataclass(frozen=True)
class Failure:
    """One wrong answer: `what` of `FAILURES`, where, and in words what came and what is right."""

    what: str
    case: Case
    question: Question
    head: int
    position: int
    words: str


@dataclass
class Verdict:
    """Numbers by name (`tried`, `wrong`, ...), and a few failures of each kind."""

    numbers: dict[str, int] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)

    def add(self, name: str, which: Tensor | int) -> None:
        self.numbers[name] = self.numbers.get(name, 0) + int(which.sum() if isinstance(which, Tensor) else which)


def judge(case: Case, truth: Truth, question: Question) -> Verdict:
    """Asks, and judges the answer."""
    verdict = Verdict()
    ask, look = (asking.entropy, _entropies) if question.metric == "entropy" else (asking.count, _counts)
    answer = _answer(ask, case, question, verdict)
    if answer is not None:
        look(case, truth, question, answer, verdict)
    return verdict


def _answer(ask: Callable[[Case, Question], Any], case: Case, question: Question, verdict: Verdict) -> Any:
    try:
        return ask(case, question)
    except Exception as error:
        verdict.add("raised", 1)
        words = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        verdict.failures.append(Failure("raised", case, question, 0, question.positions[0], words))
        return None


def _counts(case: Case, truth: Truth, question: Question, answer: CountAnswer, verdict: Verdict) -> None:
    counts, width, redone, unresolved = answer
    tau = torch.tensor(list(question.tolerances), dtype=torch.float64)[:, None, None]
    relative = question.metric == "rtol"
    threshold = (tau * truth.largest if relative else tau / truth.unit).expand(counts.shape)
    error = (truth.error * (1 + tau) if relative else truth.error).expand(counts.shape)
    least, most = truth.above(threshold, -error), truth.above(threshold, error)
    refused = (counts == -1) & ~torch.from_numpy(truth.overflows)[:, None]
    wrong = ((counts < least) | (counts > most)) & (counts != -1)
    # how far the certificate lets the tolerance be moved
    band = torch.where(threshold == 0, 0.0, width * threshold).nan_to_num(nan=0.0)
    silent = wrong & ~unresolved
    silent &= (counts < truth.above(threshold + band, -error)) | (counts > truth.above(threshold - band, error))
    silent, doubtful = _confirmed(truth, counts, threshold, band, tau * truth.error if relative else None, silent)
    above_cap = counts > truth.cap
    distance = (truth.values - threshold[..., None]).abs().amin(-1)
    well = (truth.reach <= CANCELLATION * truth.largest) & (threshold >= DEPTH * truth.largest)
    well &= (distance > DISTANCE * threshold) & error.isfinite()
    for name, which in {
        "tried": torch.ones_like(redone),
        "wrong": wrong,
        "silent": silent,
        "above the cap": above_cap,
        "refused": refused,
        "redone": redone,
        "unresolved": unresolved,
        "undecided by the oracle": ((least != most) & ~wrong) | doubtful,
        "well-conditioned": well,
        "well-conditioned and unresolved": well & unresolved,
    }.items():
        verdict.add(name, which)
    for what, which in {"silent": silent, "above the cap": above_cap, "refused": refused}.items():
        for m, head, at in _few(which):
            one = replace(question, tolerances=[float(tau[m])])
            nearest = distance[m, head, at] / threshold[m, head, at]
            words = (
                f"{int(counts[m, head, at])} with width {float(width[m, head, at]):.2g}"
                f"{', unresolved' if unresolved[m, head, at] else ''}; right: {_range(least, most, (m, head, at))}, "
                f"the nearest value is {100 * float(nearest):.2g} % of the tolerance away, "
                f"s_1 / tolerance {float(truth.largest[head, at] / threshold[m, head, at]):.2g}, "
                f"terms / s_1 {float(truth.size[head, at] / truth.largest[head, at]):.2g}"
            )
            verdict.failures.append(Failure(what, case, one, head, int(truth.positions[at]), words))


def _range(least: Tensor, most: Tensor, index: tuple[int, ...]) -> str:
    low, high = int(least[index]), int(most[index])
    return str(low) if low == high else f"{low} to {high}"


def _confirmed(
    truth: Truth, counts: Tensor, threshold: Tensor, band: Tensor, unsure: Tensor | None, silent: Tensor
) -> tuple[Tensor, Tensor]:
    """Which silent counts stay so in more digits, and which are left undecided."""
    suspects = silent.nonzero()
    if not len(suspects):
        return silent, torch.zeros_like(silent)
    kept, dropped = silent.clone(), torch.zeros_like(silent)
    chosen = torch.linspace(0, len(suspects) - 1, min(MOST_CONFIRMED, len(suspects))).long()
    for m, head, at in suspects[chosen].tolist():
        t, b = float(threshold[m, head, at]), float(band[m, head, at])
        b += 0.0 if unsure is None else float(unsure[m, head, at])
        least, most = truth.precisely(head, at, t - b, t + b)
        if least <= int(counts[m, head, at]) <= most:
            kept[m, head, at], dropped[m, head, at] = False, True
    if bool(dropped.any()):  # then those that were not looked at are no better than doubtful
        looked_at = torch.zeros_like(silent)
        looked_at[tuple(suspects[chosen].T)] = True
        dropped |= silent & ~looked_at
        kept &= looked_at
    return kept, dropped


def _few(which: Tensor, most: int = 3) -> Iterator[list[int]]:
    yield from which.nonzero()[:most].tolist()


def _entropies(case: Case, truth: Truth, question: Question, answer: EntropyAnswer, verdict: Verdict) -> None:
    found, claimed = answer
    total = truth.values.sum(-1)
    nothing = total == 0
    right = torch.where(nothing, 0.0, entropy_of_values(truth.values))
    lost = truth.cap * truth.error / total.clamp_min(1e-300)
    doubt = 2 * lost * ((truth.cap / lost.clamp_min(1e-300)).log() + 2)
    doubt = torch.where(
        nothing & truth.error.isfinite() & ~truth.underflows, 0.0, torch.where(lost < 0.1, doubt, torch.inf)
    )
    judged = doubt <= ENTROPY_DOUBT
    bad = found.isnan()
    error = torch.where(
        nothing, torch.where(found == 0, 0.0, torch.inf), (found - right).abs() / right.clamp_min(1e-300)
    )
    off = judged & ~bad & (error > ENTROPY_ERROR + doubt)
    silent = off & (claimed < error)
    broken = judged & ~bad & (error > claimed + doubt + 1e-12)
    refused = bad & ~torch.from_numpy(truth.overflows)[:, None]
    for name, which in {
        "entropies tried": torch.ones_like(bad),
        "entropies off": off,
        "entropies off and not flagged": silent,
        "entropies worse than their bound": broken,
        "entropies flagged": claimed > ENTROPY_ERROR,
        "entropies refused": refused,
        "entropies undecided by the oracle": ~judged,
    }.items():
        verdict.add(name, which)
    for what, which in {"entropies off and not flagged": silent, "entropies refused": refused}.items():
        for head, at in _few(which):
            words = (
                f"{float(found[head, at])!r}, claimed within {float(claimed[head, at]):.2g}; right: "
                f"{float(right[head, at])!r} (sum {float(total[head, at]) * truth.unit:.3g}, "
                f"terms {float(truth.size[head, at]) * truth.unit:.3g})"
            )
            verdict.failures.append(Failure(what, case, question, head, int(truth.positions[at]), words))
