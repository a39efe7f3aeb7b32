"""Bit identity: what the compiled kernels promise for any number of threads and any composition of a batch.

assert_same_for_any_threads(lambda: ek.tolerance_ess(op, backend="native"))
with running(level="avx2", threads=3): ...
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from ess_kernels import environment
from ess_kernels.backends.native.call import current, is_pinned, pinned
from ess_kernels.backends.native.choice import library

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def levels() -> list[str]:
    """The dispatch levels of this machine, none without a library."""
    return [name for name, number in environment.LEVELS.items() if number and library().level(number)]


@contextmanager
def running(*, level: str | None = None, threads: int | None = None) -> Iterator[None]:
    """Within it, the compiled kernels run at this dispatch level, with this many threads; pinned ones do so too."""
    with pytest.MonkeyPatch.context() as patch:
        if level is not None:
            patch.setenv(environment.CPU_LEVEL, level)
        if threads is not None:
            patch.setenv(environment.NUM_THREADS, str(threads))
        if not is_pinned():
            yield
            return
        # what is pinned does not look at settings
        handle, now = current()
        number = now.level if level is None else environment.LEVELS[level]
        with pinned(handle, threads or now.threads, number):
            yield


def bits(x: Tensor) -> Tensor:
    """x as integers: equal where and only where the bits are, of NaN and of signed zeros too."""
    return x.detach().contiguous().view(_INTEGERS[x.element_size()]) if x.is_floating_point() else x.detach()


def assert_same_bits(found: Any, expected: Any) -> None:
    """Tensors, or sequences of them (named tuples too), of the same shape, dtype and bits."""
    if isinstance(expected, Sequence):
        assert len(found) == len(expected)
        for f, e in zip(found, expected, strict=True):
            assert_same_bits(f, e)
        return
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    different = (bits(found) != bits(expected)).nonzero()
    assert len(different) == 0, f"{len(different)} of {expected.numel()} differ, the first at {different[0].tolist()}"


def assert_same_for_any_threads(call: Callable[[], Any], counts: Sequence[int] = (1, 2, 3, 4)) -> None:
    """`call()` gives the same bits with any of these numbers of threads, at every dispatch level of the machine."""
    for level in levels():
        with running(level=level, threads=counts[0]):
            expected = call()
        for threads in counts[1:]:
            with running(level=level, threads=threads):
                assert_same_bits(call(), expected)


def assert_same_in_any_batch(call: Callable[[Tensor], Tensor], batch: Tensor) -> None:
    """`call(batch)[h]` has the bits of `call(batch[h : h + 1])[0]`, and does not depend on the order of the batch."""
    for level in levels():
        with running(level=level):
            expected = call(batch)
            assert_same_bits(torch.cat([call(batch[h : h + 1]) for h in range(len(batch))]), expected)
            assert_same_bits(call(batch.flip(0)).flip(0), expected)
