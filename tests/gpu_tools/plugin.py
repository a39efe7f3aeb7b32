"""What the tools' plugins for pytest share: a fault fails the test that it was found in, a report ends the run.

Where tests run in several processes (pytest-xdist), each sends what it has found at its end: the report is of all.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import pytest

from .findings import Findings


class FindingsPlugin:
    """Looks at tests while they run.

    Attributes:
        title: the report's headline.
        findings: what has been found so far, in all tests.
    """

    title: str

    def __init__(self, findings: Findings) -> None:
        self.findings = findings

    def looking(self, item: pytest.Item) -> AbstractContextManager[Any]:
        """What has to be in force while this test runs."""
        return nullcontext()

    def report(self) -> list[str]:
        """The lines of the report."""
        return self.findings.lines()

    def plain(self) -> dict[str, Any]:
        """What this process has found, as something that another can be sent."""
        return self.findings.plain()

    def add_plain(self, plain: dict[str, Any]) -> None:
        """Adds what `plain` of another process has returned."""
        self.findings.add_plain(plain)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        with self.looking(item):
            return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Iterator[None]:
        with failing_on_faults(self.findings):
            return (yield)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if hasattr(session.config, "workeroutput"):
            session.config.workeroutput[self.title] = self.plain()

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """A worker has ended; one that has crashed has sent nothing, and its test fails."""
        if self.title in getattr(node, "workeroutput", {}):
            self.add_plain(node.workeroutput[self.title])

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        terminalreporter.section(self.title)
        for line in self.report():
            terminalreporter.line(line)


@contextmanager
def failing_on_faults(findings: Findings) -> Iterator[None]:
    """Fails the running test if faults are found inside that have not been found before."""
    before = set(findings.faults())
    yield
    fresh = [finding for finding in findings.faults() if finding not in before]
    if fresh:
        pytest.fail("\n".join(map(str, fresh)), pytrace=False)
