"""Operators whose tokens have several rows and columns of `T`: `T` against loops, `H_i` against slices of it."""

import pytest
import torch

import ess_kernels as ek
from ess_kernels import operators
from ess_kernels.engine.cost import Cost
from ess_kernels.engine.state_space import Recurrence
from ess_kernels.operators.blocked import Blocked
from ess_kernels.operators.rank_one import RankOneStateSpace
from ess_kernels.testing import OperatorTestCase, assert_close

TOLERANCES = [10.0**-k for k in range(1, 8)]


def randn(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def block_loop(A, B, C):
    """`T [*batch, L p, L m]` of a block recurrence with matrices `A [*batch, L, n, n]`, one column of blocks a time."""
    *batch, length, _, m = B.shape
    p = C.shape[-2]
    T = torch.zeros(*batch, length * p, length * m, dtype=torch.float64)
    for j in range(length):
        state = B[..., j, :, :]
        for i in range(j + 1, length):
            T[..., i * p : i * p + p, j * m : j * m + m] = C[..., i, :, :] @ state
            state = A[..., i, :, :] @ state
    return T


class TestBlockRecurrence(OperatorTestCase):
    speaks_for_its_kind = True
    constructor = staticmethod(operators.block_recurrence)
    decays = ("A",)
    options = {"diagonal": False}
    reads = dict.fromkeys("ABC", (0,))
    sizes = (3, 2)

    def make_inputs(self, length):
        p, m = self.sizes
        A = torch.linalg.qr(randn(2, length, 4, 4))[0] * 0.9
        return {"A": A, "B": randn(2, length, 4, m), "C": randn(2, length, p, 4)}

    def dense(self, A, B, C):
        return block_loop(A, B, C)


class TestDiagonalBlockRecurrence(TestBlockRecurrence):
    options = {"diagonal": True}
    sizes = (1, 3)

    def make_inputs(self, length):
        A = torch.rand(2, length, 4, dtype=torch.float64)
        return {**super().make_inputs(length), "A": A}

    def dense(self, A, B, C):
        return block_loop(torch.diag_embed(A), B, C)


class TestDenseBlocks(OperatorTestCase):
    constructor = staticmethod(operators.dense)
    options = {"block": 3}
    reads = {"T": (0,)}
    state_size = None

    def make_inputs(self, length):
        return {"T": randn(2, 3 * length, 3 * length)}

    def dense(self, T):
        token = torch.arange(T.shape[-1]) // 3
        return torch.where(token[:, None] >= token, T, 0)

    def test_bad_data_marks_its_heads_and_no_others(self):
        """Only what lies below the diagonal blocks is in any `H_i`."""
        for value in (torch.nan, torch.inf):
            for row, column, counts in ((2, 0, False), (0, 2, False), (2, 7, False), (8, 0, True), (3, 2, True)):
                T = self.inputs(3)["T"]
                T[1, row, column] = value
                counted = ek.tolerance_ess(operators.dense(T, block=3))
                assert ((counted == -1).all(1)).tolist() == [False, counts]
                assert ((ek.entropy_ess(operators.dense(T, block=3), backend="reference").isnan()).all(1)).tolist() == [
                    False,
                    counts,
                ]


CASES = {
    "2 x 2, diagonal": (2, 2, True),
    "3 x 3": (3, 3, False),
    "1 x 4": (1, 4, False),
    "4 x 1, diagonal": (4, 1, True),
    "3 x 2": (3, 2, False),
}


def case(name, length=60, n=7):
    torch.manual_seed(0)
    p, m, diagonal = CASES[name]
    A = torch.exp(-0.3 * torch.rand(length, n).double()) if diagonal else torch.linalg.qr(randn(length, n, n))[0] * 0.9
    B, C = randn(length, n, m), randn(length, p, n)
    T = block_loop(torch.diag_embed(A) if diagonal else A, B, C)
    return operators.block_recurrence(A, B, C, diagonal=diagonal), T, p, m


@pytest.mark.parametrize("backend", ["auto", "torch", "reference"])
@pytest.mark.parametrize("name", CASES)
def test_every_metric_at_every_position(name, backend):
    op, T, p, m = case(name)
    blocks = [T[p * i :, : m * i] for i in range(1, op.length)]
    values = [torch.linalg.svdvals(H)[: op.state_size] for H in blocks]
    wanted = torch.tensor([[int((s > atol).sum()) for s in values] for atol in TOLERANCES])
    counts, certificate = ek.tolerance_ess(op, TOLERANCES, backend=backend, certificate=True)
    assert torch.equal(counts, wanted)
    assert not certificate.unresolved.any()
    relative = ek.tolerance_ess(op, rtol=0.3, backend=backend)
    assert relative.tolist() == [int((s > 0.3 * s[0]).sum()) for s in values]
    shares = [s / s.sum() for s in values]
    entropy = torch.stack([torch.special.entr(x).sum().exp() for x in shares])
    assert_close("entropy", ek.entropy_ess(op, backend=backend), entropy, rtol=1e-4)
    found = ek.singular_values(op, [1, 17, 59, 17], backend=backend)
    assert found.shape == (4, 7)
    for row, i in zip(found, (1, 17, 59, 17), strict=True):
        s = values[i - 1]
        assert_close(f"values at {i}", row[: len(s)], s, atol=1e-12 * float(s[0]))
        assert not row[min(len(s), 7) :].any()


def test_the_definition_cuts_the_operator_itself():
    op, T, p, m = case("3 x 2")
    for i in (1, 30, 59):
        s = torch.linalg.svdvals(T[p * i :, : m * i])[:7]
        assert_close(f"values at {i}", ek.reference.reference_singular_values(op, [i])[0, : len(s)], s, atol=1e-12)
        assert ek.reference.reference_tolerance_ess(op, 0.1, positions=[i]).item() == int((s > 0.1).sum())


def test_no_more_values_than_the_smaller_side_and_the_state():
    op, *_ = case("3 x 2")
    i = torch.arange(1, 60)
    wanted = torch.minimum(2 * i, 3 * (60 - i)).clamp_max(7)
    assert torch.equal(ek.aggregate.cap(op), wanted)
    counts = ek.tolerance_ess(op, atol=0.0, backend="torch")
    assert bool((counts <= wanted).all())
    assert ek.aggregate.utilisation(counts, op, against="cap").amax() <= 1
    assert ek.singular_values(op, [1]).shape == (1, 2)
    dense = operators.dense(op.dense()[:120, :120], block=4)
    assert torch.equal(ek.aggregate.cap(dense), 4 * torch.minimum(torch.arange(1, 30), 30 - torch.arange(1, 30)))
    assert ek.aggregate.utilisation(torch.full((29,), 4), dense)[0] == 1


def test_randomized_counts():
    op, T, p, m = case("1 x 4")
    found = ek.randomized_ess(op, [10, 30, 55], atol=1e-2, rank=16)
    wanted = [int((torch.linalg.svdvals(T[p * i :, : m * i]) > 1e-2).sum()) for i in (10, 30, 55)]
    assert found.certified.all() and found.count.tolist() == wanted


@pytest.mark.parametrize("length", [0, 1, 2])
def test_short_sequences(length):
    op = operators.block_recurrence(randn(3, length, 2), randn(3, length, 2, 2), randn(3, length, 3, 2), diagonal=True)
    wanted = (3, max(length - 1, 0))
    assert op.dense().shape == (3, 3 * length, 2 * length)
    assert ek.tolerance_ess(op).shape == ek.entropy_ess(op).shape == wanted
    assert operators.dense(randn(2, 4 * length, 4 * length), block=4).length == length


def test_one_row_and_one_column_are_a_recurrence():
    A, B, C = torch.rand(2, 9, 4).double(), randn(2, 9, 4), randn(2, 9, 4)
    blocks = operators.block_recurrence(A, B[..., None], C[..., None, :], diagonal=True)
    plain = operators.recurrence(A, B, C, diagonal=True)
    assert torch.equal(blocks.dense(), plain.dense())
    assert torch.equal(ek.tolerance_ess(blocks, 0.1), ek.tolerance_ess(plain, 0.1))


def test_a_gradient_of_entropy():
    """Against that of the definition."""
    recurrences = [torch.rand(6, 3).double(), randn(6, 3, 2), randn(6, 2, 3)]
    for given, make in (
        (recurrences, lambda *x: operators.block_recurrence(*x, diagonal=True)),
        ([randn(8, 8)], lambda x: operators.dense(x, block=2)),
    ):
        op = make(*[x.requires_grad_() for x in given])
        weights = torch.linspace(0.5, 2, op.length - 1).double()
        found, wanted = (
            torch.autograd.grad((metric(op) * weights).sum(), given)
            for metric in (ek.entropy_ess, ek.reference.reference_entropy_ess)
        )
        for x, y in zip(found, wanted, strict=True):
            assert_close("gradient", x, y, rtol=1e-3, atol=1e-4)


def test_rows_of_the_last_sub_token_alone():
    """As the gated delta product has it: n_h sub-tokens a token, all of them inputs, the output after the last."""
    q, k = randn(1, 12, 2, 4), randn(1, 12, 2, 4)
    q[:, torch.arange(12) % 3 != 2] = 0.0
    k = k / k.norm(dim=-1, keepdim=True)
    inner = RankOneStateSpace(q, k, torch.zeros(1, 12, 2, 4).double())
    op = Blocked(inner, 3, rows=(2, 3))
    assert op.block == (1, 3) and op.length == 4
    T = inner.dense()[..., 2::3, :]
    assert torch.equal(op.dense(), T)
    values = ek.singular_values(op, [1, 2, 3], backend="torch")
    for i in (1, 2, 3):
        s = torch.linalg.svdvals(T[..., i:, : 3 * i])
        assert_close("values", values[..., i - 1, : s.shape[-1]], s, atol=1e-12)


# --- constant systems -------------------------------------------------------------------------------------------------


def stable(n, *batch):
    """Matrices of spectral radius 0.9."""
    A = randn(*batch, n, n)
    return 0.9 * A / torch.linalg.eigvals(A).abs().amax(-1)[..., None, None]


def over_time(x, length):
    return x[:, None].expand(-1, length, *x.shape[1:])


class TestLTI(OperatorTestCase):
    constructor = staticmethod(operators.lti)
    options = {"length": 9}
    lengths = (9,)
    decays = ("A",)
    reads = dict.fromkeys("ABC", (0,))
    state_size = 4

    def make_inputs(self, length):
        return {"A": stable(4, 2), "B": randn(2, 4, 2), "C": randn(2, 3, 4)}

    def dense(self, A, B, C):
        B = B if B.dim() == A.dim() else B[..., None]
        C = C if C.dim() == A.dim() else C[..., None, :]
        return block_loop(*(over_time(x, 9) for x in (A, B, C)))


class TestLTIWithOneInput(TestLTI):
    def make_inputs(self, length):
        return {"A": stable(4, 2), "B": randn(2, 4), "C": randn(2, 3, 4)}


class TestLTIWithOneOfEach(TestLTI):
    def make_inputs(self, length):
        return {"A": stable(4, 2), "B": randn(2, 4), "C": randn(2, 4)}


class TestDiagonalLTI(TestLTI):
    options = {"length": 9, "diagonal": True}

    def make_inputs(self, length):
        return {"A": torch.rand(2, 4).double(), "B": randn(2, 4, 3), "C": randn(2, 4)}

    def dense(self, A, B, C):
        return super().dense(torch.diag_embed(A), B, C)


def lyapunov(A, B):
    """The solution P of `P = A P A^T + B B^T`."""
    n = len(A)
    return torch.linalg.solve(torch.eye(n * n).double() - torch.kron(A, A), (B @ B.T).flatten()).view(n, n)


@pytest.mark.parametrize("backend", ["auto", "torch"])
@pytest.mark.parametrize(("p", "m"), [(1, 1), (3, 2), (1, 4)])
def test_hankel_singular_values(p, m, backend):
    """Far from both ends: the roots of the eigenvalues of the product of both Gramians."""
    torch.manual_seed(p + m)
    A, B, C = stable(6), randn(6, m), randn(p, 6)
    product = lyapunov(A, B) @ lyapunov(A.T, C.T)
    wanted = torch.linalg.eigvals(product).real.clamp_min(0).sqrt().sort(descending=True).values
    found = ek.singular_values(operators.lti(A, B, C, 801), [400], backend=backend)[0]
    assert_close("values", found, wanted, rtol=1e-9, atol=1e-10 * float(wanted[0]))


@pytest.mark.parametrize("diagonal", [True, False])
@pytest.mark.parametrize(("p", "m"), [(1, 1), (2, 2), (3, 1), (4, 4)])
@pytest.mark.parametrize("length", [1, 2, 5, 16, 33, 97])
def test_parts_made_once_give_the_same_answers(p, m, diagonal, length):
    """Against a recurrence with the same matrices at every token, whose blocks are all made."""
    torch.manual_seed(length)
    A = torch.rand(1, 5).double() if diagonal else stable(5, 1)
    B, C = randn(1, 5, m), randn(1, p, 5)
    once = operators.lti(A, B, C, length, diagonal=diagonal)
    every = operators.block_recurrence(*(over_time(x, length) for x in (A, B, C)), diagonal=diagonal)
    found, certificate = ek.tolerance_ess(once, TOLERANCES, backend="torch", certificate=True)
    wanted, usual = ek.tolerance_ess(every, TOLERANCES, backend="torch", certificate=True)
    assert torch.equal(found, wanted) and torch.equal(certificate.unresolved, usual.unresolved)
    assert_close("width", certificate.width, usual.width, rtol=1e-6)
    # log-determinants of small shifts magnify rounding, and products of batches of other sizes round in other ways
    assert_close("entropy", ek.entropy_ess(once, backend="torch"), ek.entropy_ess(every, backend="torch"), rtol=1e-6)
    values = [ek.singular_values(op, range(1, length), backend="torch") for op in (once, every)]
    assert_close("values", *values, atol=1e-12 * float(values[1].amax() if length > 1 else 1))


def test_parts_do_not_grow_with_the_length():
    op = operators.lti(stable(3), randn(3, 2), randn(2, 3), 5000).inner
    engine = Recurrence(op.one_period(op.all_heads()), 16, Cost(), repeated_to=op.length)
    # three kinds of blocks, for three sub-tokens a token, and the last one
    assert engine.blocks.X.shape[:2] == (1, 4) and engine.blocks.number == -(-15000 // 16)
    assert engine.tokens.transition.shape[:2] == (1, 4)


BAD = [
    (lambda: operators.lti(randn(3, 2), randn(3), randn(3), 5), ValueError, ["A", "[*batch, n, n]", "[3, 2]"]),
    (lambda: operators.lti(randn(3, 3), randn(2), randn(3), 5), ValueError, ["B", "[*batch, n]", "[2]"]),
    (lambda: operators.lti(randn(3, 3), randn(3), randn(3, 2), 5), ValueError, ["C", "[*batch, p, n]", "[3, 2]"]),
    (lambda: operators.lti(randn(3, 3), randn(3), randn(3), 5.0), TypeError, ["length", "integer", "float"]),
    (lambda: operators.lti(randn(3, 3), randn(3), randn(3), -5), ValueError, ["length", "at least 0", "-5"]),
    (lambda: operators.lti(randn(3, 3).cfloat(), randn(3), randn(3), 5), TypeError, ["A", "real", "complex64"]),
    (lambda: operators.lti(randn(3, 3), randn(3), randn(3), 5, diagonal=1), TypeError, ["diagonal", "bool", "int"]),
    (lambda: operators.dense(torch.zeros(6, 6), block=4), ValueError, ["block", "6", "4"]),
    (lambda: operators.dense(torch.zeros(6, 6), block=0), ValueError, ["block", "at least 1", "0"]),
    (lambda: operators.dense(torch.zeros(6, 6), block=2.0), TypeError, ["block", "integer", "float"]),
    (
        lambda: operators.block_recurrence(randn(5, 3), randn(5, 3), randn(5, 2, 3), diagonal=True),
        ValueError,
        ["B", "[*batch, L, n, m]", "[5, 3]"],
    ),
    (
        lambda: operators.block_recurrence(randn(5, 3), randn(5, 3, 2), randn(5, 3, 2), diagonal=True),
        ValueError,
        ["C", "[*batch, L, p, n]", "[5, 3, 2]"],
    ),
    (
        lambda: operators.block_recurrence(randn(5, 3), randn(5, 3, 2), randn(5, 2, 3), diagonal=False),
        ValueError,
        ["A", "[5, 3, 3]", "[5, 3]"],
    ),
    (
        lambda: operators.block_recurrence(randn(5, 3).cfloat(), randn(5, 3, 2), randn(5, 2, 3), diagonal=True),
        TypeError,
        ["A", "complex64"],
    ),
    (
        lambda: operators.block_recurrence(randn(5, 3), randn(5, 3, 0), randn(5, 2, 3), diagonal=True),
        ValueError,
        ["B", "m", "at least 1"],
    ),
]


@pytest.mark.parametrize("call, kind, words", BAD)
def test_bad_input(call, kind, words):
    with pytest.raises(kind) as caught:
        call()
    assert str(caught.value).startswith(words[0])
    assert all(word in str(caught.value) for word in words)
