"""Says once a call what a long exact computation will cost."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

logger = logging.getLogger("ess_kernels")

# floating-point operations: about a second of small decompositions on a few cores
LONG = 2e9


class Cost:
    """Counts the work of exact singular values in one call."""

    def __init__(self) -> None:
        self.work = 0.0
        self.said = False

    def note(self, count: int, work: float) -> None:
        """`count` more positions, `work` floating-point operations: logs once when that becomes long."""
        self.work += work
        if self.work >= LONG and not self.said:
            self.said = True
            logger.warning(
                "%d positions need exact singular values: at least %.1e floating-point operations", count, self.work
            )


_shared: ContextVar[Cost | None] = ContextVar("_shared", default=None)


@contextmanager
def one_call() -> Iterator[None]:
    """Within it all engines share one `Cost`: what is answered in several pieces says it once."""
    token = _shared.set(Cost())
    try:
        yield
    finally:
        _shared.reset(token)


def cost_of_call() -> Cost:
    """That of the call, or a new one."""
    return _shared.get() or Cost()
