"""What a kernel is launched with: one rule for each kernel, used by launches, by `variants()` and by the cost model."""

from __future__ import annotations

from typing import NamedTuple


class Launch(NamedTuple):
    """Warps of a program, and stages of its loops over loads.

    With one stage Triton loads where the source says so. With more, it copies to shared memory beforehand what a later
    pass of a loop will load, and does not check whether an earlier pass has yet to store there. Most of these kernels
    read again what they have stored, so that their numbers would be wrong. More stages also cost registers and shared
    memory, so that kernels spill.
    """

    num_warps: int
    num_stages: int = 1

    def options(self) -> dict[str, int]:
        """For a launch or for `triton.compile`."""
        return self._asdict()
