"""`pytest --triton-races`: the tests of kernels under the watch."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest

from ..plugin import FindingsPlugin
from .interpreter import watching
from .watch import Watch


class RacesPlugin(FindingsPlugin):
    """Watches what lies in `tests/triton_kernels`; other tests run as they do without it."""

    title = "races in Triton's interpreter"

    def __init__(self, config: pytest.Config) -> None:
        orders = config.getoption("triton_orders")
        self.watch = Watch([order for order in orders.split(",") if order])
        super().__init__(self.watch.findings)
        self.folder = config.rootpath / "tests" / "triton_kernels"
        if not self.folder.is_dir():
            raise pytest.UsageError(f"--triton-races: there is no folder {self.folder}, nothing would be watched")

    def looking(self, item: pytest.Item) -> AbstractContextManager[Any]:
        return watching(self.watch) if item.path.is_relative_to(self.folder) else nullcontext()
