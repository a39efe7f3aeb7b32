"""Slices of a sequence: what `OperatorTestCase` inherits about operators whose tokens may lie in several processes."""

from __future__ import annotations

import torch

from ..distributed.families import cuttable
from ..distributed.slices import tokens_of
from .closeness import assert_close
from .packed_case import LENGTH, PackedCase

# two slices, the second of them longer
CUT = 4


class SlicedCase(PackedCase):
    """A family whose recurrence can be cut between tokens has the tokens of the whole in its slices.

    A family that needs earlier tokens is refused (`operators.over_time.accumulates`): if it were not, slices of it
    would give plausible numbers.
    """

    def test_slices_have_the_tokens_of_the_whole_or_are_refused(self) -> None:
        inputs = self.inputs(LENGTH)
        whole = self.make_operator(inputs)
        try:
            state_space = cuttable(whole)
        except (TypeError, ValueError):
            return
        times = self._times()
        assert not self.lags, "a recurrence whose inputs are indexed by lag cannot be cut"
        slices = []
        for start, stop in ((0, CUT), (CUT, LENGTH)):
            own = {}
            for name, x in inputs.items():
                for axis in times[name]:
                    each = x.shape[axis] // LENGTH
                    x = x.narrow(axis, each * start, each * (stop - start))
                own[name] = x
            slices.append(cuttable(self._alone(own, stop - start)))
        heads = state_space.all_heads()
        expected = tokens_of(state_space, heads, (0, state_space.length))
        first, second = (tokens_of(op, heads, (0, op.length)) for op in slices)
        for number, (x, y) in enumerate(zip(expected.tensors, first.cat(second, dim=1).tensors, strict=True)):
            assert_close(f"tensor {number} of the tokens", torch.nan_to_num(y), torch.nan_to_num(x), rtol=1e-14, atol=0)
