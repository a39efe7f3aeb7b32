"""What a kernel is launched with: one rule a kernel, read by the launch, by `variants()` and by the cost model."""

from __future__ import annotations

from typing import NamedTuple


class Launch(NamedTuple):
    """Warps of a program, and stages of its loops over loads.

    One stage: Triton then loads where the source says so. With more it copies what a later pass loads to shared memory
    beforehand, and does not ask whether an earlier pass has yet to write it: most of these kernels read again what they
    have written. Two and three stages also cost registers and shared memory, and spill.
    """

    num_warps: int
    num_stages: int = 1

    def options(self) -> dict[str, int]:
        """For a launch or for `triton.compile`."""
        return self._asdict()
