"""What tests of single kernels share: a pinned library, without which no kernel can be called on its own."""

from collections.abc import Iterator

import pytest
from identical import levels, running

from ess_kernels.backends.native import choice


@pytest.fixture
def pinned() -> Iterator[None]:
    """The library in use is pinned, with the settings of now.

    What a test sets afterwards is not looked at: `identical.running` changes what is pinned as well.
    """
    with choice.as_set():
        yield


@pytest.fixture(params=levels())
def level(request: pytest.FixtureRequest) -> Iterator[str]:
    """The library in use is pinned, at every dispatch level of the machine."""
    with running(level=request.param), choice.as_set():
        yield request.param
