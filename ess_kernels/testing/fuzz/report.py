"""What a run of the fuzzer found: numbers by backend, a line for a document, failures by kind, the smallest as code."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from .case import Case
from .code import program
from .judge import FAILURES, Failure, Verdict

COUNTS = ("tried", "wrong", "silent", "above the cap", "refused", "redone", "unresolved", "undecided by the oracle")
# no failure, but to be rare: a certificate that doubts everything is no cure
DOUBTED = "well-conditioned and unresolved"
ENTROPIES = ("tried", "off", "off and not flagged", "worse than their bound", "flagged", "refused")


@dataclass
class Report:
    """Numbers of a run so far.

    Attributes:
        seed, backends: of the run.
        numbers: counters by backend.
        kinds: how many wrong answers, and doubts without a reason, by (backend, what, family, kind).
        smallest: by (backend, what, family), the failure with the smallest input.
    """

    seed: int
    backends: list[str]
    cases: int = 0
    seconds: float = 0.0
    numbers: dict[str, Counter[str]] = field(default_factory=dict)
    kinds: Counter[tuple[str, str, str, str]] = field(default_factory=Counter)
    smallest: dict[tuple[str, str, str], Failure] = field(default_factory=dict)

    def add(self, backend: str, case: Case, verdict: Verdict) -> None:
        self.numbers.setdefault(backend, Counter()).update(verdict.numbers)
        for what in (*FAILURES, DOUBTED):
            if verdict.numbers.get(what):
                self.kinds[backend, what, case.family, case.kind] += verdict.numbers[what]
        for failure in verdict.failures:
            key = (backend, failure.what, case.family)
            if key not in self.smallest or case.numel < self.smallest[key].case.numel:
                self.smallest[key] = failure

    def total(self, name: str) -> int:
        return sum(numbers[name] for numbers in self.numbers.values())

    @property
    def failed(self) -> bool:
        return any(self.total(name) for name in FAILURES)

    def table(self) -> str:
        """One row a number, one column a backend."""
        rows = [(name, name) for name in COUNTS]
        rows += [("well-conditioned", "well-conditioned")]
        rows += [("  of these unresolved", DOUBTED)]
        rows += [(f"entropies {name}", f"entropies {name}") for name in ENTROPIES]
        rows += [("entropies undecided by the oracle",) * 2, ("calls that raised", "raised")]
        backends = [name for name in self.backends if name in self.numbers]
        lines = [" " * 36 + "".join(f"{name:>12}" for name in backends)]
        for label, name in rows:
            prefix = "counts " if name in COUNTS else ""
            lines.append(f"{prefix + label:36}" + "".join(f"{self.numbers[b][name]:>12,}" for b in backends))
        return "\n".join(lines)

    def line(self) -> str:
        """The figures of the run in one sentence."""
        well, doubted = self.total("well-conditioned"), self.total(DOUBTED)
        return (
            f"seed {self.seed}, {self.seconds / 60:.0f} min, {self.cases:,} operators on {', '.join(self.backends)}: "
            f"{self.total('tried'):,} counts, {self.total('wrong'):,} wrong, {self.total('silent'):,} silent, "
            f"{self.total('redone'):,} redone, {self.total('unresolved'):,} unresolved "
            f"({doubted:,} of {well:,} on well-conditioned inputs); {self.total('entropies tried'):,} entropies, "
            f"{self.total('entropies off'):,} off by more than 1e-4, "
            f"{self.total('entropies off and not flagged'):,} of them not flagged"
        )

    def failures(self, programs: int) -> str:
        """Failures by kind, most frequent first, and the smallest inputs as programs."""
        lines = []
        for (backend, what, family, kind), many in self.kinds.most_common():
            lines.append(f"{many:8,}  {backend}: {what}: {family}, {kind}")
        smallest = sorted(self.smallest.values(), key=lambda failure: failure.case.numel)
        for failure in smallest[:programs]:
            case = failure.case
            lines += ["", f"# {failure.question.backend}: {failure.what}, {case.family}, {case.kind}", program(failure)]
        return "\n".join(lines)

    def as_json(self) -> dict[str, Any]:
        """Everything that was printed, for a file."""
        return {
            "seed": self.seed,
            "seconds": self.seconds,
            "cases": self.cases,
            "backends": self.backends,
            "line": self.line(),
            "numbers": {backend: dict(numbers) for backend, numbers in self.numbers.items()},
            "kinds": [[*key, many] for key, many in self.kinds.most_common()],
            "programs": {": ".join(key): program(failure) for key, failure in self.smallest.items()},
        }
