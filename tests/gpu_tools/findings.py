"""What the tools have found: which kind of fault, in which kernel, at which line, and how many times."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import astuple, dataclass
from typing import Any


@dataclass(frozen=True)
class Finding:
    """A kind of fault at one place.

    Attributes:
        kind: one word, see the package that reports it.
        kernel: the function that was launched.
        where: file and line of the access.
        before: file and line of the earlier access that it is in conflict with, or "".
        what: a sentence without its subject.
    """

    kind: str
    kernel: str
    where: str
    before: str
    what: str

    def __str__(self) -> str:
        before = f" after {self.before}" if self.before else ""
        return f"{self.kind:9s} {self.kernel}: {self.where}{before}: {self.what}"


class Findings:
    """Findings with the number of addresses, lanes or times of each, and the launches that were looked at.

    Args:
        remarks: kinds that are told but are no faults, for they can be harmless.
    """

    def __init__(self, remarks: Iterable[str] = ()) -> None:
        self.remarks = frozenset(remarks)
        self.counts: Counter[Finding] = Counter()
        self.launches: Counter[str] = Counter()

    def add(self, kind: str, kernel: str, where: str, before: str, what: str, count: int = 1) -> None:
        self.counts[Finding(kind, kernel, where, before, what)] += count

    def kinds(self) -> set[str]:
        return {finding.kind for finding in self.counts}

    def faults(self) -> list[Finding]:
        """All that are more than a remark, in a fixed order."""
        return sorted((x for x in self.counts if x.kind not in self.remarks), key=str)

    def plain(self) -> dict[str, Any]:
        """All of it in dictionaries, lists, strings and numbers: what another process can be sent."""
        counts = [[list(astuple(finding)), count] for finding, count in self.counts.items()]
        return {"counts": counts, "launches": dict(self.launches)}

    def add_plain(self, plain: dict[str, Any]) -> None:
        """Adds what `plain` of another process has returned."""
        self.counts.update({Finding(*fields): count for fields, count in plain["counts"]})
        self.launches.update(plain["launches"])

    def lines(self) -> list[str]:
        """A report: what was launched, the faults, the remarks, and how many there are of each."""
        faults = self.faults()
        remarks = sorted(self.counts.keys() - set(faults), key=str)
        launched = ", ".join(f"{name} {count}" for name, count in sorted(self.launches.items()))
        return [
            f"{len(self.launches)} kernels, {self.launches.total()} launches: {launched or 'none'}",
            *(f"{finding} [{self.counts[finding]}]" for finding in (*faults, *remarks)),
            f"{len(faults)} faults, {len(remarks)} remarks",
        ]
