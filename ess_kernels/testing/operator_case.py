"""The test case that every operator family inherits.

A new family writes two methods and inherits the rest:

    class TestGLA(OperatorTestCase):
        constructor = staticmethod(operators.gla)
        allows_minus_inf = ("g",)

        def make_inputs(self, length):
            return {"q": ..., "k": ..., "g": ...}  # the constructor's tensors by name, float64

        def dense(self, q, k, g):
            return ...  # T, by other means than the operator's own

        def upstream(self, v, q, k, g):  # optional: what upstream's function makes of the values v
            return upstream_function("fla.ops.gla.naive", "naive_recurrent_gla")(q, k, v, g)

What a subclass can say about itself is in `family.py`; tests that compare an operator with a changed one are in
`relations.py`, all others here. pytest collects the subclass by its name; nothing here imports pytest.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from ..backends.triton.runtime import interpreting
from ..environment import MEMORY_BUDGET
from ..metrics import Certificate, entropy_ess, singular_values, tolerance_ess
from ..operators import packing
from ..operators.structure import Operator, StateSpace, Tiled
from ..reference import reference_entropy_ess, reference_singular_values, reference_tolerance_ess
from .closeness import assert_close
from .family import FamilyUnderTest
from .relations import RelationsOfOperators
from .sliced_case import SlicedCase
from .upstream import ValueLayout, matrix_of, outputs

# of counts on every backend; random inputs of the order of one have singular values on both sides of each
TOLERANCES = [0.5, 0.05, 1e-6]
# of T against upstream's, and of upstream against its own T, in units of the largest entry
UPSTREAM = 1e-12


def in_precision(x: Tensor, dtype: torch.dtype) -> Tensor:
    """`x` in a real floating-point dtype. Complex numbers are rounded to it, and are complex64 at least."""
    if not x.is_complex():
        return x.to(dtype)
    parts = torch.view_as_real(x.resolve_conj()).to(dtype)
    return torch.view_as_complex(parts.to(torch.promote_types(dtype, torch.float32)))


class OperatorTestCase(RelationsOfOperators, SlicedCase, FamilyUnderTest):
    """The tests that every operator family passes. See the module for what a subclass writes."""

    def test_dense(self) -> None:
        for length in self.lengths:
            inputs = self.inputs(length)
            assert_close(
                f"T at L={length}",
                self.make_operator(inputs).dense(),
                self.dense(**inputs),
                rtol=self.rtol,
                atol=self.rtol,
            )

    def test_upstream_is_linear_and_has_this_matrix(self) -> None:
        """T from upstream's outputs for one-hot values, and its outputs for random values from that T."""
        if type(self).upstream is FamilyUnderTest.upstream:
            return  # this family has no reference function
        length = self.upstream_length or max(self.lengths)
        inputs = self.inputs(length)
        op = self.make_operator(inputs)
        layout = ValueLayout(self.value_layout)

        def run(v: Tensor) -> Any:
            return self.upstream(v, **{name: x.clone() for name, x in inputs.items()})

        T = matrix_of(run, layout, op.batch_shape, length, self.value_channels)
        unit = float(T.abs().amax())
        assert_close("T", op.dense() / unit, T / unit, 0, UPSTREAM)
        channels = self.value_channels or (3 if layout.has_channels else 1)
        generator = torch.Generator().manual_seed(length)
        v = torch.randn(2, *op.batch_shape, length, channels, dtype=torch.float64, generator=generator)
        # a mixer whose weights depend on its values is no matrix: it misses one of these
        for what, values in (("zeros", 0 * v[0]), ("one", v[0]), ("another", v[1]), ("their sum", v[0] + v[1])):
            found = outputs(run, layout, values)
            assert_close(f"upstream is not linear in its values: {what}", found / unit, T @ values / unit, 0, UPSTREAM)

    def test_shapes(self) -> None:
        for length in self.lengths:
            inputs = self.inputs(length)
            op = self.make_operator(inputs)
            T = op.dense()
            rows, columns = op.block
            assert op.length == length
            assert T.dtype == torch.float64
            assert T.shape == (*op.batch_shape, length * rows, length * columns)
            T = T.unflatten(-1, (length, columns)).unflatten(-3, (length, rows)).transpose(-2, -3)
            token = torch.arange(length)
            assert bool((T[..., token[:, None] < token, :, :] == 0).all())
            assert op.num_heads == math.prod(op.batch_shape)
            wanted = next(iter(inputs.values())).shape[-1] if self.state_size == "last" else self.state_size
            assert op.state_size == wanted
            assert bool(op.finite(op.all_heads()).all())

    def test_selected_heads(self) -> None:
        op = self.make_operator(self.inputs(9))
        everything = op.dense_heads(op.all_heads())
        heads = torch.tensor([op.num_heads - 1, 0, op.num_heads - 1])
        assert torch.equal(op.dense_heads(heads), everything[heads])
        assert op.finite(heads).shape == (3,)
        if isinstance(op, Tiled):
            for start, stop in ((0, 0), (0, 4), (3, 7), (8, 9)):
                band = everything[heads, start:stop, :stop]
                assert_close(f"rows {start}..{stop}", op.rows(heads, start, stop), band, rtol=1e-14)
        if isinstance(op.inner, StateSpace):
            op = op.inner
            tokens = op.tokens(heads)
            shape = (3, op.length, op.state_size)
            assert tokens.read.shape == tokens.write.shape == shape
            vectors = op.diagonal or op.rank_one
            assert tokens.transition.shape == (shape if vectors else (*shape, op.state_size))
            assert (tokens.diagonal, tokens.rank_one) == (op.diagonal, op.rank_one)
            assert all(x.shape == shape for x in tokens.tensors[3:])
            assert tokens.reads_before == op.reads_before
            assert {x.dtype for x in tokens.tensors} == {torch.float64}

    def test_rank_within_state_size(self) -> None:
        op = self.make_operator(self.inputs(9))
        if op.state_size is None:
            return
        T = op.dense()
        for i in range(1, op.length):
            values = torch.linalg.svdvals(op.submatrix(T, i))
            noise = 1e-12 * values.amax()
            assert bool((values[..., op.state_size :] <= noise).all())

    def test_half_inputs_are_upcast_first(self) -> None:
        for dtype in (torch.bfloat16, torch.float16, torch.float32):
            low = {name: in_precision(x, dtype) for name, x in self.inputs(9).items()}
            op = self.make_operator(low)
            upcast = self.make_operator({name: in_precision(x, torch.float64) for name, x in low.items()})
            assert torch.equal(op.dense(), upcast.dense()), dtype

    def test_non_contiguous_inputs(self) -> None:
        inputs = self.inputs(9)
        strided = {
            name: torch.stack([x, x], -1)[..., 0].mT.contiguous().mT for name, x in inputs.items() if x.dim() > 1
        }
        op = self.make_operator({**inputs, **strided})
        assert_close("T", op.dense(), self.make_operator(inputs).dense(), rtol=1e-14, atol=1e-14)

    def test_bad_data_marks_its_heads_and_no_others(self) -> None:
        inputs = self.inputs(9)
        clean = self.make_operator(inputs)
        T = clean.dense_heads(clean.all_heads())
        for name, x in inputs.items():
            values: list[Any] = [torch.nan, torch.inf]
            if name not in self.allows_minus_inf:
                values.append(-torch.inf)
            if x.is_complex():
                values += [complex(0, value) for value in values]
            for index in (tuple(0 for _ in x.shape), tuple(size - 1 for size in x.shape)):
                for value in values:
                    spoilt = x.clone()
                    spoilt[index] = value
                    op = self.make_operator({**inputs, name: spoilt})
                    reads = self._readers(name, x, index, op.batch_shape).flatten()
                    finite = op.finite(op.all_heads())
                    assert torch.equal(finite, ~reads), (
                        f"{name}{list(index)} = {value}: finite {finite}, read by {reads}"
                    )
                    read_diagonal = 0 if name not in self.diagonal_only else -1
                    found, wanted = (x[~reads].tril(read_diagonal) for x in (op.dense_heads(op.all_heads()), T))
                    assert torch.equal(found, wanted)

    def test_minus_inf_where_it_is_valid(self) -> None:
        for name in self.allows_minus_inf:
            inputs = self.inputs(9)
            inputs[name][tuple(size // 2 for size in inputs[name].shape)] = -torch.inf
            op = self.make_operator(inputs)
            assert bool(op.finite(op.all_heads()).all())
            assert_close("T", op.dense(), self.dense(**inputs), rtol=self.rtol, atol=self.rtol)

    def test_metrics_where_every_head_of_a_call_or_of_a_chunk_is_bad(self) -> None:
        inputs = self._short_inputs()
        first = next(iter(inputs))
        one_bad = {**inputs, first: inputs[first].clone()}
        one_bad[first][self._last_row(first, one_bad[first])] = torch.nan
        self._compare_metrics_of_few_heads({**inputs, first: torch.full_like(inputs[first], torch.nan)}, one_bad)

    def test_metrics_where_every_head_of_a_call_or_of_a_chunk_grows(self) -> None:
        if self.decays:
            growing = {name: -3 * x if name in self.decays else x for name, x in self._short_inputs().items()}
            self._compare_metrics_of_few_heads(growing, growing)

    def _compare_metrics_of_few_heads(self, all_odd: Mapping[str, Tensor], some_odd: Mapping[str, Tensor]) -> None:
        """Every metric of inputs that kernels cannot take: of all heads, of one alone, and of one head a chunk.

        Kernels read inputs in the precision that they have: each comes once.
        """
        alone = self._first_head(all_odd)
        for dtype in (torch.float64, torch.float16):
            self._compare_metrics("all heads", all_odd, dtype, "auto")
        for dtype in (torch.float32, torch.bfloat16):
            self._compare_metrics("only head", alone, dtype, "auto")
        self._compare_metrics("only head", alone, torch.float64, "torch")
        with mock.patch.dict(os.environ, {MEMORY_BUDGET: "1"}):
            self._compare_metrics("one head a chunk", some_odd, torch.float64, "auto")

    def _compare_metrics(self, what: str, inputs: Mapping[str, Tensor], dtype: torch.dtype, backend: str) -> None:
        """Every metric of the inputs in this precision against the definition."""
        op = self.make_operator({name: in_precision(x, dtype) for name, x in inputs.items()})
        what = f"{what}, {dtype}, backend {backend}"
        for atol, rtol in ((0.05, None), (None, 0.05)):
            counts = tolerance_ess(op, atol, rtol, backend=backend)
            assert isinstance(counts, Tensor)
            wanted = reference_tolerance_ess(op, atol, rtol)
            assert_close(f"{what}: counts, atol={atol}, rtol={rtol}", counts, wanted, 0, 0)
        assert_close(f"{what}: entropy", entropy_ess(op, backend=backend), reference_entropy_ess(op), rtol=1e-4)
        values = reference_singular_values(op)
        found = singular_values(op, list(range(1, op.length)), values.shape[-1], backend)
        assert_close(f"{what}: values", found, values, atol=1e-12 * float(values.nan_to_num(0.0).amax()))

    def test_every_backend_agrees_with_the_definition(self) -> None:
        """Every backend that is usable here; Triton's interpreter has a test of its own, for it takes seconds."""
        op = self.make_operator(self._short_inputs())
        for backend in self._backends(op):
            if not (backend == "triton" and interpreting()):
                self._compare_with_the_definition(op, backend)

    def test_interpreted_kernels_agree_with_the_definition(self) -> None:
        """One head in Triton's interpreter, if `TRITON_INTERPRET=1` was set before triton was imported."""
        op = self.make_operator(self._first_head(self._short_inputs()))
        if interpreting() and "triton" in self._backends(op):
            self._compare_with_the_definition(op, "triton")

    def _compare_with_the_definition(self, op: Operator, backend: str) -> None:
        """Counts wherever the certificate calls them resolved, entropies and singular values."""
        wanted = torch.stack([reference_tolerance_ess(op, atol) for atol in TOLERANCES])
        counts, certificate = tolerance_ess(op, TOLERANCES, backend=backend, certificate=True)
        assert isinstance(certificate, Certificate)
        resolved = ~certificate.unresolved
        assert bool(resolved.any()), f"backend {backend}: every count is unresolved"
        assert_close(f"backend {backend}: resolved counts", counts[resolved], wanted[resolved], 0, 0)
        entropy = entropy_ess(op, backend=backend)
        assert_close(f"backend {backend}: entropy", entropy, reference_entropy_ess(op), rtol=1e-4)
        values = reference_singular_values(op)
        found = singular_values(op, range(1, op.length), values.shape[-1], backend)
        assert_close(f"backend {backend}: values", found, values, 0, 1e-12 * float(values.amax()))

    def test_an_operator_survives_packing(self) -> None:
        op = self.make_operator({name: x.requires_grad_() for name, x in self.inputs(9).items()})
        pieces = packing.pack(op)
        if pieces is None:
            ours = type(op).__module__.startswith("ess_kernels.")
            assert not ours, f"{type(op).__name__}: name the class in FAMILIES of ess_kernels/operators/packing.py"
            return
        again = packing.unpack(*pieces)
        assert type(again) is type(op) and not again.requires_grad
        for attribute in ("length", "batch_shape", "state_size", *op.NUMBERS):
            assert getattr(again, attribute) == getattr(op, attribute), attribute
        assert torch.equal(again.dense(), op.dense())

    def test_one_compiled_graph_gives_the_same_numbers(self) -> None:
        """The constructor and every metric under `torch.compile(fullgraph=True)`, once for two sets of inputs."""
        from torch._dynamo.testing import CompileCounterWithBackend  # takes seconds to import

        examples = [self.inputs(max(self.lengths)) for _ in range(2)]
        examples[1] = {name: 0.5 * x for name, x in examples[1].items()}
        if packing.pack(self.make_operator(examples[0])) is None:
            return  # other classes end the graph, and say so
        names = list(examples[0])

        def everything(*tensors: Tensor) -> list[Any]:
            op = self.make_operator(dict(zip(names, tensors)))
            last = op.length - 1
            return [
                tolerance_ess(op, 0.3),
                tolerance_ess(op, [0.3, 0.0], rtol=[0.0, 0.1], positions=range(1, last, 3), certificate=True),
                entropy_ess(op, [last, 1, last]),
                singular_values(op, (last, 1)),
            ]

        torch._dynamo.reset()
        counter = CompileCounterWithBackend("aot_eager")
        compiled = torch.compile(everything, fullgraph=True, backend=counter)
        for example in examples:
            found, wanted = tree_leaves(compiled(*example.values())), tree_leaves(everything(*example.values()))
            assert [x.dtype for x in found] == [x.dtype for x in wanted]
            assert all(torch.equal(x, y) for x, y in zip(found, wanted, strict=True))
        assert counter.frame_count == 1

    def test_empty_batch(self) -> None:
        def empty(name: str, x: Tensor) -> Tensor:
            axis = self.reads.get(name, (0, 2))[0]
            return x if axis is None else x.narrow(axis, 0, 0)

        op = self.make_operator({name: empty(name, x) for name, x in self.inputs(9).items()})
        assert op.num_heads == 0
        assert op.dense().shape == (*op.batch_shape, 9 * op.block[0], 9 * op.block[1])
        assert op.finite(op.all_heads()).shape == (0,)

    def test_gradient(self) -> None:
        """By finite differences: every entry for one head, and random directions for all, which may share inputs."""
        whole = self.inputs(4)
        for inputs, fast in ((self._first_head(whole), False), (whole, True)):
            inputs = {name: x.clone().requires_grad_() for name, x in inputs.items()}
            assert self.make_operator(inputs).requires_grad

            def T(*tensors: Tensor, names: tuple[str, ...] = tuple(inputs)) -> Tensor:
                return self.make_operator(dict(zip(names, tensors))).dense()

            assert torch.autograd.gradcheck(T, tuple(inputs.values()), fast_mode=fast)

    def test_a_gradient_is_asked_for_through_each_input(self) -> None:
        inputs = self.inputs(3)
        for name, x in inputs.items():
            op = self.make_operator({**inputs, name: x.clone().requires_grad_()})
            assert op.requires_grad, f"{name} alone requires grad, and the operator does not"

    def test_sizes_that_do_not_fit_are_refused(self) -> None:
        """Each input with an axis less, an axis more, and each axis one longer: an error that names an argument, or an
        operator that is right for these inputs too."""
        inputs = self.inputs(5)
        for name, x in inputs.items():
            longer = [torch.cat([x, x.narrow(axis, 0, 1)], axis) for axis in range(x.dim()) if x.shape[axis]]
            for changed in (x[..., 0], x[..., None], *longer):
                given = {**inputs, name: changed}
                try:
                    op = self.make_operator(given)
                except (ValueError, TypeError, NotImplementedError) as error:
                    named = any(str(error).startswith(argument) for argument in (*inputs, *self.options))
                    assert named, f"{name} {list(changed.shape)}: no argument is named by {error}"
                    continue
                if name in self.other_sizes:
                    continue
                label = f"T for {name} {list(changed.shape)}"
                assert_close(label, op.dense(), self.dense(**given), rtol=self.rtol, atol=self.rtol)

    def test_wrong_dtypes_are_refused_by_name(self) -> None:
        inputs = self.inputs(3)
        for name, x in inputs.items():
            wrong_dtypes: list[Any] = [x.real.long(), x.bool(), x.numpy()]
            if not x.is_complex() and name not in self.real_or_complex:
                wrong_dtypes.append(x.to(torch.complex64))
            for wrong in wrong_dtypes:
                changed: dict[str, Any] = {**inputs, name: wrong}
                try:
                    self.make_operator(changed)
                except TypeError as error:
                    assert name in str(error)
                    assert str(getattr(wrong, "dtype", "")) in str(error) or type(wrong).__name__ in str(error)
                else:
                    raise AssertionError(f"{name}: {wrong.dtype} was accepted")
