"""Tests that change an operator in a way whose effect on the answers is known: scaled, reversed, asked for in parts."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..backends.triton.runtime import interpreting
from ..metrics import Certificate, entropy_ess, singular_values, tolerance_ess
from ..operators.dense import dense
from ..operators.structure import Operator
from .closeness import assert_close
from .family import FamilyUnderTest

TOLERANCE = 0.05
# powers of two change no digit of a product
FACTORS = (2.0**-30, 2.0**20)
# what an entropy promises
ENTROPY = 1e-4


def _numbers(op: Operator, atol: float, backend: str, positions: list[int] | None = None) -> tuple[Tensor, Tensor]:
    """Counts and entropies."""
    counts = tolerance_ess(op, atol, positions=positions, backend=backend)
    assert isinstance(counts, Tensor)
    entropy = entropy_ess(op, positions, backend=backend)
    assert isinstance(entropy, Tensor)
    return counts, entropy


class RelationsOfOperators(FamilyUnderTest):
    def _fast_backends(self, op: Operator) -> list[str]:
        """All that are no definition, but for Triton's interpreter, which takes seconds."""
        slow = ("auto", "reference", "triton") if interpreting() else ("auto", "reference")
        return [name for name in self._backends(op) if name not in slow]

    def test_powers_of_two_scale_every_digit(self) -> None:
        inputs = self._short_inputs()
        op = self.make_operator(inputs)
        known = {backend: _numbers(op, TOLERANCE, backend) for backend in self._fast_backends(op)}
        for name in self.scales:
            for factor in FACTORS:
                scaled = self.make_operator({**inputs, name: inputs[name] * factor})
                assert torch.equal(scaled.dense(), op.dense() * factor), f"{name} * {factor}"
                for backend, (counts, entropy) in known.items():
                    what = f"{name} * {factor}, backend {backend}"
                    found_counts, found_entropy = _numbers(scaled, TOLERANCE * factor, backend)
                    assert_close(f"{what}: counts", found_counts, counts, 0, 0)
                    assert_close(f"{what}: entropy", found_entropy, entropy, rtol=ENTROPY)

    def test_some_positions_have_the_answers_of_all(self) -> None:
        op = self.make_operator(self.inputs(max(self.lengths)))
        some = [position for position in (op.length - 1, 1, op.length // 2, 1) if 1 <= position < op.length]
        columns = torch.tensor(some, dtype=torch.int64) - 1
        for backend in self._fast_backends(op):
            counts, entropy = _numbers(op, TOLERANCE, backend)
            some_counts, some_entropy = _numbers(op, TOLERANCE, backend, some)
            assert_close(f"{backend}: counts", some_counts, counts[..., columns], 0, 0)
            assert_close(f"{backend}: entropy", some_entropy, entropy[..., columns], rtol=ENTROPY)

    def test_a_part_of_the_batch_has_the_same_answers(self) -> None:
        """And from compiled kernels the same bits, if T's are: PyTorch rounds by where in memory a number lies."""
        inputs = self.inputs(max(self.lengths))
        op = self.make_operator(inputs)
        T = op.dense()
        known = {backend: _numbers(op, TOLERANCE, backend) for backend in self._fast_backends(op)}
        for index in range(op.batch_shape[0]):
            part = self.make_operator(self._part_of_the_batch(inputs, index))
            part_T = part.dense()[0]
            assert_close("T", part_T, T[index], 1e-14, 1e-14 * float(T.abs().amax()))
            for backend, whole in known.items():
                counts, entropy = (x[index] for x in whole)
                part_counts, part_entropy = (x[0] for x in _numbers(part, TOLERANCE, backend))
                what = f"{backend}, element {index} of the batch"
                assert_close(f"{what}: counts", part_counts, counts, 0, 0)
                assert_close(f"{what}: entropy", part_entropy, entropy, rtol=ENTROPY)
                if backend == "native" and torch.equal(part_T, T[index]):
                    assert torch.equal(part_entropy, entropy), f"{what}: entropies have other bits"

    def _part_of_the_batch(self, inputs: Mapping[str, Tensor], index: int) -> dict[str, Tensor]:
        """What element `index` along the first batch dimension reads, that dimension kept."""
        part = {}
        for name, x in inputs.items():
            axis = self.reads.get(name, (0, 2))[0]
            part[name] = x if axis is None else x.narrow(axis, index, 1)
        return part

    def test_reversed_in_time_the_positions_run_backwards(self) -> None:
        """`R[a, b] = T[L-1-b, L-1-a]` is lower triangular too, and its `H_i` is `H_(L-i)` of `T` transposed and turned.

        So the singular values at position i are those of `T` at L - i, found from an operator of the other structure.
        """
        op = self.make_operator(self.inputs(max(self.lengths)))
        if op.inner is not op:
            return  # positions are blocks of rows and columns, and `dense` knows no blocks that are not square
        backwards = dense(op.dense().flip(-1, -2).mT)
        positions = range(1, op.length)
        number = singular_values(op, positions).shape[-1]
        values, entropy = singular_values(op, positions, number), entropy_ess(op)
        unit = float(values.amax()) if values.numel() else 0.0
        assert_close("values", singular_values(backwards, positions, number).flip(-2), values, 0, 1e-12 * unit)
        assert_close("entropy", entropy_ess(backwards).flip(-1), entropy, rtol=ENTROPY)
        counts, certificate = tolerance_ess(op, TOLERANCE, certificate=True)
        back, back_certificate = tolerance_ess(backwards, TOLERANCE, certificate=True)
        assert isinstance(certificate, Certificate) and isinstance(back_certificate, Certificate)
        resolved = ~(certificate.unresolved | back_certificate.unresolved.flip(-1))
        assert_close("counts", back.flip(-1)[resolved], counts[resolved], 0, 0)
