"""Slices of a sequence: what they are to each other, and that each answers as the whole does. No processes here."""

import math
import subprocess
import sys
from itertools import pairwise

import pytest
import torch
from in_slices import answers, cut, joined, pieces_of, pieces_of_spans

import ess_kernels as ek
from ess_kernels import operators
from ess_kernels.distributed.families import cuttable
from ess_kernels.distributed.passage import Passage, passages, spectral_bound
from ess_kernels.distributed.sequence_parallel import readable
from ess_kernels.distributed.slices import turned
from ess_kernels.engine.cost import Cost
from ess_kernels.engine.state_space import Recurrence, block_length
from ess_kernels.operators.structure import StateSpace
from ess_kernels.reference import reference_singular_values, reference_tolerance_ess
from ess_kernels.testing.cases import CASES, build, names, rand, randn

L, N = 150, 6
TOLERANCES = [1.0, 1e-1, 1e-3, 1e-6]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def gates(*shape):
    return torch.nn.functional.logsigmoid(2 * randn(*shape)) / 4


def delta(q, k, g, beta):
    return operators.gated_delta_rule(q, k, g=g, beta=beta)


def before(A, B, C):
    return operators.recurrence(A, B, C, diagonal=True)


def matrices(A, B, C):
    return operators.recurrence(A, B, C, diagonal=False)


def contractions(length):
    k = torch.nn.functional.normalize(randn(1, 2, length, N), dim=-1)
    return 0.98 * (torch.eye(N, dtype=torch.float64) - 0.9 * k[..., None] * k[..., None, :])


def inputs_of(name, length=L):
    """A constructor, its tensors, and the axis of the time of each."""
    q, k = randn(1, length, 2, N), randn(1, length, 2, N)
    unit = torch.nn.functional.normalize(k, dim=-1)
    rows = [q.transpose(1, 2), k.transpose(1, 2)]
    found = {
        "gla": lambda: (operators.gla, (q, k, gates(1, length, 2, N)), (1, 1, 1)),
        "no decay": lambda: (operators.linear_attention, (q, k), (1, 1)),
        "mamba-2": lambda: (operators.ssd, (rand(1, length, 2), -rand(2), k[:, :, :1], q[:, :, :1]), (1, None, 1, 1)),
        "mamba": lambda: (
            operators.selective_scan,
            (rand(1, 3, length), -rand(3, N), randn(1, N, length), randn(1, N, length)),
            (2, None, 2, 2),
        ),
        "delta rule": lambda: (delta, (q, unit, -rand(1, length, 2) / 8, rand(1, length, 2)), (1, 1, 1, 1)),
        "reads before": lambda: (before, (rand(1, 2, length, N), *rows), (2, 2, 2)),
        "matrices": lambda: (matrices, (contractions(length), *rows), (2, 2, 2)),
        "complex": lambda: (
            before,
            (torch.polar(rand(1, 2, length, N), randn(1, 2, length, N)), torch.complex(*rows), rows[0]),
            (2, 2, 2),
        ),
        "a sum": lambda: (
            lambda A, B, C, D: operators.sum_of(before(A, B, C), before(D, C, B), weights=(1.0, 0.5)),
            (
                torch.polar(rand(1, 2, length, 3), randn(1, 2, length, 3)),
                *(x[..., :3] for x in rows),
                rand(1, 2, length, 3),
            ),
            (2, 2, 2, 2),
        ),
        "a sum in a sum": lambda: (
            lambda A, B, C, D: operators.sum_of(
                operators.sum_of(before(A, B, C), before(D, C, B), weights=(1.0, 0.5)), before(D, B, C), weights=(2, 1)
            ),
            (
                torch.polar(rand(1, 2, length, 2), randn(1, 2, length, 2)),
                *(x[..., :2] for x in rows),
                rand(1, 2, length, 2),
            ),
            (2, 2, 2, 2),
        ),
        "several outputs": lambda: (
            lambda A, B, C: operators.block_recurrence(A, B, C, diagonal=True),
            (rand(1, 2, length, N), randn(1, 2, length, N, 2), randn(1, 2, length, 3, N)),
            (2, 2, 2),
        ),
        "short convolution": lambda: (operators.dynamic_short_convolution, (randn(1, 2, length, 4),), (2,)),
    }
    return found[name]()


NAMES = (
    "gla",
    "no decay",
    "mamba-2",
    "mamba",
    "delta rule",
    "reads before",
    "matrices",
    "complex",
    "a sum",
    "a sum in a sum",
    "several outputs",
    "short convolution",
)


def slices_of(name, edges, length=L):
    """The operator of the whole, and those of its slices."""
    constructor, tensors, axes = inputs_of(name, length)
    ops = [constructor(*cut(tensors, axes, start, stop)) for start, stop in pairwise(edges)]
    return constructor(*tensors), ops


def test_importing_the_package_imports_nothing_of_this():
    code = (
        "import sys, ess_kernels as ek, torch\n"
        "loaded = [m for m in sys.modules if m.startswith(('ess_kernels.distributed', 'torch.distributed.tensor'))]\n"
        "assert not loaded, loaded\n"
        "assert callable(ek.distributed.sequence_parallel) and 'distributed' in dir(ek)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# --- what a slice is to the others ------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [0, 1, 5, 64, 200])
@pytest.mark.parametrize("name", ["gla", "delta rule", "matrices", "reads before"])
def test_roots_have_the_gramians_of_what_is_written_and_read(name, length):
    constructor, tensors, _ = inputs_of(name, length)
    op = constructor(*tensors)
    tokens = op.tokens(op.all_heads())
    reach, observe = passages(tokens, 16)
    Phi = torch.eye(N, dtype=torch.float64).expand(2, N, N)
    written, seen = randn(2, N, 0), randn(2, 0, N)
    for t in range(length):
        if op.reads_before:
            seen = torch.cat([seen, tokens.read[:, t, None] @ Phi], 1)
        Phi = tokens.move(t, Phi)
        written = torch.cat([tokens.move(t, written), tokens.write[:, t, :, None]], -1)
        if not op.reads_before:
            seen = torch.cat([seen, tokens.read[:, t, None] @ Phi], 1)
    assert reach.rows == observe.rows == min(length, N)
    assert not reach.root[:, reach.rows :].any() and not observe.root[:, observe.rows :].any()
    for root, rows in ((reach.root, written.mT), (observe.root, seen)):
        torch.testing.assert_close(root.mT @ root, rows.mT @ rows, rtol=1e-12, atol=1e-12)
    found = torch.diag_embed(reach.Phi) if reach.diagonal else reach.Phi
    torch.testing.assert_close(found, Phi, rtol=1e-12, atol=1e-14)
    assert torch.equal(observe.Phi, reach.Phi if reach.diagonal else reach.Phi.mT)
    assert reach.diagonal == op.diagonal


@pytest.mark.parametrize("name", ["gla", "no decay", "delta rule", "matrices"])
def test_bounds_of_rounding_hold_and_are_not_far_off(name):
    """Against the same in single precision, whose roundings are 2^29 times as large."""
    constructor, tensors, _ = inputs_of(name, 300)
    op = constructor(*[x.float().double() for x in tensors])
    exact = op.tokens(op.all_heads())
    rounded = exact.map(lambda x: x.float())
    found, wrong = (passages(x, 16) for x in (exact, rounded))
    for right, other in zip(found, wrong, strict=True):
        P, Q = right.root.mT @ right.root, other.root.double().mT @ other.root.double()
        # |F F^T - G G^T| <= 2 |F| |F - G|, for roots as near to each other as they can be
        sizes, error = right.sizes(), 2.0**29 * right.error
        assert ((P - Q).norm(dim=(1, 2)) <= 2 * sizes.norm(dim=1) * error.norm(dim=1)).all()
        assert (error.norm(dim=1) < 2e-3 * sizes.norm(dim=1)).all()
        far = (right.Phi - other.Phi.double()).flatten(1).norm(dim=1)
        assert (far <= 2.0**29 * right.drift.norm(dim=1) + 1e-300).all()


def test_the_bound_of_a_norm_is_above_it_and_near():
    A = torch.cat([randn(20, 24, 24), torch.diag_embed(rand(20, 24)), torch.zeros(1, 24, 24, dtype=torch.float64)])
    A = A * torch.logspace(-150, 150, 41, dtype=torch.float64)[:, None, None]
    norm, bound = torch.linalg.matrix_norm(A, 2), spectral_bound(A)
    assert (bound >= norm).all() and (bound <= 1.06 * norm + 1e-290).all()


# --- a slice answers as the whole does --------------------------------------------------------------------------------

EDGES = {"uneven": (0, 1, 40, 117, L), "short ones": (0, 3, 7, 9, L), "nothing in some": (0, 0, 70, 70, L, L)}


@pytest.mark.parametrize("edges", EDGES.values(), ids=EDGES)
@pytest.mark.parametrize("name", NAMES)
def test_slices_answer_as_the_whole_does(name, edges):
    whole, ops = slices_of(name, edges)
    expected, own = ek.tolerance_ess(whole, TOLERANCES, certificate=True)
    found = answers(ek.tolerance_ess, ops, atol=TOLERANCES, certificate=True)
    counts = torch.cat([counts for counts, _ in found], -1)
    unresolved = torch.cat([certificate.unresolved for _, certificate in found], -1)
    assert torch.equal(counts[..., ~unresolved.any(0).any(0).any(0)], expected[..., ~unresolved.any(0).any(0).any(0)])
    assert not unresolved.any() and not own.unresolved.any()
    entropy, error = ek.entropy_ess(whole, certificate=True)
    far = (answers(ek.entropy_ess, ops) / entropy - 1).abs()
    assert (far <= 1e-5).all() and (far <= 2 * error.error).all()
    positions = range(1, L)
    values = answers(ek.singular_values, ops, dim=-2, k=N)
    expected = ek.singular_values(whole, positions, k=N)
    assert ((values - expected).abs() <= 1e-13 * expected[..., :1]).all()


@pytest.mark.parametrize("backend", ["reference", "torch", "native"])
def test_every_backend_takes_a_slice(backend):
    whole, ops = slices_of("delta rule", (0, 21, 50), 50)
    expected = reference_tolerance_ess(whole, TOLERANCES)
    assert torch.equal(answers(ek.tolerance_ess, ops, atol=TOLERANCES, backend=backend), expected)
    relative = answers(ek.tolerance_ess, ops, rtol=0.05, backend=backend)
    assert torch.equal(relative, ek.tolerance_ess(whole, rtol=0.05))


def test_blocks_of_slices_are_those_of_the_whole():
    """Where a slice begins at a multiple of the block length, boundaries and scales of blocks are the same."""
    whole, ops = slices_of("gla", (0, 64, 192, L + 106), L + 106)
    c = block_length(N, True)
    one = Recurrence(whole.tokens(whole.all_heads()), c, Cost())
    for piece in pieces_of(ops):
        op = piece.op
        assert (op.first - piece.span.begin) % 64 == 0
        other = Recurrence(op.tokens(op.all_heads()), c, Cost())
        mine = slice(op.first // c, (op.first + piece.span.stop) // c)
        theirs = slice(piece.span.begin // c, (piece.span.begin + piece.span.stop) // c)
        unit = (other.unit / one.unit).square()[:, None, None, None]

        def seen(engine, where):
            # what a root is but for signs: how it maps the reads of its block
            return (engine.blocks.X[:, where] @ engine.roots[:, where].mT).square().sum(-1, keepdim=True)

        torch.testing.assert_close(unit * seen(other, mine), seen(one, theirs), rtol=1e-12, atol=0)
    entropy = ek.entropy_ess(whole)
    assert ((answers(ek.entropy_ess, ops) / entropy - 1).abs() <= 1e-7).all()


def test_entropy_is_the_same_where_rounding_does_not_reach_its_singular_values():
    A, B, C = rand(1, 1, 256, 16), randn(1, 1, 256, 16), randn(1, 1, 256, 16)
    ops = [before(A[:, :, a:b], B[:, :, a:b], C[:, :, a:b]) for a, b in ((0, 64), (64, 192), (192, 256))]
    entropy = ek.entropy_ess(before(A, B, C), backend="torch")
    assert ((answers(ek.entropy_ess, ops, backend="torch") / entropy - 1).abs() <= 1e-12).all()


@pytest.mark.parametrize("name", ["gla", "delta rule", "reads before", "complex"])
def test_entropies_differ_by_the_error_of_one_process(name):
    whole, ops = slices_of(name, EDGES["uneven"])
    right = ek.entropy_ess(whole, backend="reference")
    one, found = ek.entropy_ess(whole, backend="torch"), answers(ek.entropy_ess, ops, backend="torch")
    assert ((found / one - 1).abs() <= (one / right - 1).abs() + 5e-7).all()


def test_blocks_that_other_tokens_share_have_the_finer_quadrature():
    """They have another scale than in one process, and so another error: with more nodes it is too small to matter."""
    whole, ops = slices_of("gla", (0, 40, 117, L))
    expected = ek.entropy_ess(whole, backend="reference")
    c, seen = block_length(N, True), 0
    for piece in pieces_of(ops):
        stop = piece.op.first + piece.span.stop - piece.span.start
        found = ek.entropy_ess(piece.op, backend="torch")
        for seam in piece.op.seams:
            start = seam - seam % c
            for i in range(max(start, piece.op.first), min(start + c, stop)) if seam % c else ():
                at = piece.span.begin + i - piece.op.first
                if at:
                    assert ((found[..., i - 1] / expected[..., at - 1] - 1).abs() <= 3e-7).all()
                    seen += 1
    assert seen >= 2 * c


@pytest.mark.parametrize("backend", ["torch", "native"])
def test_the_faint_end_of_a_slice_is_not_doubted(backend):
    """What other slices have lost counts block by block: by as much as is left of it, and is read from there on."""
    length = 512
    q, k, g = randn(1, length, 2, N), randn(1, length, 2, N), -0.1 * rand(1, length, 2, N)
    q = q * torch.logspace(0, -20, length, dtype=torch.float64)[:, None, None]
    tensors, tolerances = (q, k, g), [1e-3, 1e-12, 1e-18]
    whole = operators.gla(*tensors)
    ops = [operators.gla(*(x[:, a:b] for x in tensors)) for a, b in ((0, 20), (20, length))]
    found = answers(ek.tolerance_ess, ops, atol=tolerances, backend=backend, certificate=True)
    assert torch.equal(torch.cat([counts for counts, _ in found], -1), ek.tolerance_ess(whole, tolerances))
    assert not any(bool(certificate.unresolved.any()) for _, certificate in found)
    found = answers(ek.entropy_ess, ops, backend=backend, certificate=True)
    entropy = torch.cat([entropy for entropy, _ in found], -1)
    torch.testing.assert_close(entropy, ek.entropy_ess(whole), rtol=1e-5, atol=0)
    assert not any(bool(certificate.unresolved.any()) for _, certificate in found)


def test_small_singular_values_survive():
    """Roots are never squared: what is 1e-12 of the largest value is found, as in one process."""
    q, k = randn(1, L, 1, N), randn(1, L, 1, N)
    scale = torch.logspace(0, -6, N, dtype=torch.float64)
    whole, edges = operators.linear_attention(q * scale, k * scale), (0, 50, 90, L)
    ops = [operators.linear_attention(q[:, a:b] * scale, k[:, a:b] * scale) for a, b in pairwise(edges)]
    expected = reference_singular_values(whole, range(1, L))[..., :N]
    found = answers(ek.singular_values, ops, dim=-2, k=N)
    assert ((found - expected).abs() <= 1e-13 * expected[..., :1]).all()
    middle = slice(N, L - N)
    assert (expected[0, 0, middle, -1] > 1e-13 * expected[0, 0, middle, 0]).all()
    tau = float(expected[0, 0, L // 2, -2:].prod().sqrt())
    counts = answers(ek.tolerance_ess, ops, atol=tau)
    assert torch.equal(counts, ek.tolerance_ess(whole, atol=tau))


def test_what_cancels_is_not_counted():
    """`H` is zero, and what is left of it are rounding errors, of which slices make as many as the whole."""
    a, b, g = randn(1, L, 1, 3), randn(1, L, 1, 3), gates(1, L, 1, 3)
    q, k, g = torch.cat([a, a], -1), torch.cat([b, -b], -1), torch.cat([g, g], -1)
    edges = (0, 30, 31, 100, L)
    ops = [operators.gla(q[:, s:e], k[:, s:e], g[:, s:e]) for s, e in pairwise(edges)]
    for tau in (1e-13, 1e-14, 1e-15, 1e-16):
        for counts, certificate in answers(ek.tolerance_ess, ops, atol=tau, certificate=True):
            assert ((counts == 0) | certificate.unresolved).all()
    assert (answers(ek.entropy_ess, ops) == 0).all()


def test_the_end_of_a_padded_sequence_is_zero():
    q, k, g = randn(1, L, 1, N), randn(1, L, 1, N), gates(1, L, 1, N)
    q[:, 80:], k[:, 80:] = 0, 0
    edges = (0, 60, 100, L)
    ops = [operators.gla(q[:, s:e], k[:, s:e], g[:, s:e]) for s, e in pairwise(edges)]
    entropy = answers(ek.entropy_ess, ops)
    assert (entropy[..., 79:] == 0).all() and (entropy[..., :79] >= 1).all()
    for _, certificate in answers(ek.entropy_ess, ops, certificate=True)[1:]:
        assert not certificate.unresolved.any()


def test_bad_data_in_one_slice_mark_the_head_in_all_and_change_no_other():
    constructor, tensors, axes = inputs_of("gla")
    edges = (0, 20, 90, L)
    bad = [x.clone() for x in tensors]
    bad[1][0, 30, 1, 2] = torch.nan

    def slices(values):
        return [constructor(*cut(values, axes, start, stop)) for start, stop in pairwise(edges)]

    counts, entropy = (answers(metric, slices(bad)) for metric in (ek.tolerance_ess, ek.entropy_ess))
    assert (counts[:, 1] == -1).all() and entropy[:, 1].isnan().all()
    assert torch.equal(counts[:, 0], answers(ek.tolerance_ess, slices(tensors))[:, 0])
    assert torch.equal(entropy[:, 0], answers(ek.entropy_ess, slices(tensors))[:, 0])


def test_no_heads_and_few_tokens():
    for length in (0, 1, 2):
        whole, ops = slices_of("gla", (0, length // 2, length), length)
        assert torch.equal(answers(ek.tolerance_ess, ops), ek.tolerance_ess(whole))
    nothing = torch.zeros(1, 5, 0, 3)
    ops = [operators.gla(nothing, nothing, nothing)] * 2
    assert answers(ek.tolerance_ess, ops).shape == (1, 0, 9)


def test_growing_states_are_left_to_the_dense_operator_as_elsewhere():
    A = torch.full((1, 1, 60, 3), 1e30, dtype=torch.float64)
    B, C = randn(1, 1, 60, 3) * 1e-300, randn(1, 1, 60, 3)
    A[:, :, 8:] = 0.5
    ops = [before(A[:, :, a:b], B[:, :, a:b], C[:, :, a:b]) for a, b in ((0, 20), (20, 60))]
    assert torch.equal(answers(ek.tolerance_ess, ops), ek.tolerance_ess(before(A, B, C)))


def test_what_overflows_between_slices_has_no_plausible_numbers():
    A, B, C = (x.clone() for x in (rand(1, 2, 30, 3), randn(1, 2, 30, 3), randn(1, 2, 30, 3)))
    A[:, 1] = 1e20  # 1e200 in every slice, 1e600 in all
    ops = [before(A[:, :, a:b], B[:, :, a:b], C[:, :, a:b]) for a, b in ((0, 10), (10, 20), (20, 30))]
    counts, whole = answers(ek.tolerance_ess, ops), ek.tolerance_ess(before(A, B, C))
    assert torch.equal(counts[:, 0], whole[:, 0])
    assert (whole[:, 1] == -1).all() and (counts[:, 1, -10:] == -1).all()


def test_arguments_are_told_in_few_words_which_differ_where_they_do():
    one, other = list(range(1, 5000)), [*range(1, 4999), 7]
    assert readable(one) == readable(torch.tensor(one)) != readable(other)
    assert len(readable(one)) < 200 and readable([1, 2]) == "[1, 2]" and readable("auto") == "'auto'"


KINDS = ("diagonal", "rank one", "full")
HARD = [name for kind in KINDS for name in names(kind=kind) if 4 <= CASES[name].length <= 400]


@pytest.mark.thorough
@pytest.mark.parametrize("name", HARD)
def test_no_hard_case_is_miscounted_in_slices(name):
    """What differs from one process is unresolved, or within the widths that both certify; so with entropies."""
    op = build(name)
    if not isinstance(op, StateSpace) or turned(op) or hasattr(op, "accumulated"):
        return  # its tokens, cut, are none of slices
    length = op.length
    tau = [1.0, 1e-2, 1e-4, 1e-7, 1e-10]
    counts, sure = ek.tolerance_ess(op, tau, certificate=True)
    entropy, bound = ek.entropy_ess(op, certificate=True)
    for piece in pieces_of_spans(op, (0, length // 5, length // 5 + 1, 2 * length // 3, length)):
        its = list(piece.span.positions)
        at, places = torch.tensor(its, dtype=torch.int64) - 1, piece.places(its, 1)
        found, certificate = ek.tolerance_ess(piece.op, tau, positions=places, certificate=True)
        differs = (found != counts[..., at]) & ~certificate.unresolved & ~sure.unresolved[..., at]
        if differs.any():
            values = reference_singular_values(op, its)
            of_each = torch.tensor(tau, dtype=torch.float64).view(-1, *[1] * (found.dim() - 1))
            width = torch.maximum(certificate.width, sure.width[..., at]) * of_each
            near = ((values[None] - of_each[..., None]).abs() <= width[..., None]).any(-1)
            assert near[differs].all()
        ess, error = ek.entropy_ess(piece.op, places, certificate=True)
        told = ~error.unresolved & ~bound.unresolved[..., at] & ~ess.isnan()
        far = (ess - entropy[..., at]).abs()
        allowed = (error.error + bound.error[..., at]) * entropy[..., at].clamp_min(1.0) + 1e-9
        assert (far <= allowed)[told].all()


# --- which operators can be cut ---------------------------------------------------------------------------------------


def refused():
    q = torch.rand(1, 8, 2, 4, dtype=torch.float64)
    k = q.transpose(1, 2)
    gate = torch.rand(1, 2, 8, dtype=torch.float64)
    yield TypeError, "Attention has no finite state .*to_heads", operators.attention(k, k)
    yield TypeError, "Convolution has no finite state", operators.convolution(torch.ones(2, 8))
    yield ValueError, "mlstm sums over all earlier tokens", operators.mlstm(k, k, i=gate, f=gate)
    yield ValueError, "lightnet sums", operators.lightnet(q, q)
    yield ValueError, "rebased sums", operators.rebased(q, q)
    yield ValueError, "mesa_net sums", operators.mesa_net(q, q, g=-q[..., 0], beta=q[..., 0], lamb=q[0, 0])
    yield ValueError, "linear_attention sums", operators.linear_attention(q, q, normalize=True)
    summed = operators.sum_of(operators.linear_attention(q, q), operators.lightnet(q, q), weights=(1, 1))
    yield ValueError, "lightnet sums", summed
    within = operators.sum_of(summed, operators.linear_attention(q, q), weights=(1, 1))
    yield ValueError, "lightnet sums", within
    packed = operators.linear_attention(q, q, cu_seqlens=torch.tensor([0, 3, 8]))
    yield TypeError, "linear_attention with cu_seqlens", packed
    yield TypeError, "expected an operator of this process's tokens, got Tensor", q
    yield TypeError, "got str", "op"


@pytest.mark.parametrize("number", range(12))
def test_what_cannot_be_cut_is_refused_by_name(number):
    error, words, op = list(refused())[number]
    with pytest.raises(error, match=words):
        cuttable(op)


def test_normalised_linear_attention_is_told_of_earlier_tokens():
    q, k = rand(1, L, 2, N), rand(1, L, 2, N)
    whole = operators.linear_attention(q, k, normalize=True, num_v_heads=4)
    first = operators.linear_attention(q[:, :60], k[:, :60], normalize=True, num_v_heads=4)
    then = operators.linear_attention(q[:, 60:], k[:, 60:], normalize=True, num_v_heads=4)
    heads = whole.all_heads()
    resumed = then.accumulated.resumed(first.accumulated.total())
    assert isinstance(resumed, StateSpace) and cuttable(resumed) is resumed
    torch.testing.assert_close(resumed.tokens(heads).read, whole.tokens(heads).read[:, 60:], rtol=1e-13, atol=0)


def test_passages_are_joined_in_any_grouping():
    constructor, tensors, _ = inputs_of("delta rule")
    op = constructor(*tensors)
    tokens = op.tokens(op.all_heads())
    parts = [passages(tokens.map(lambda x: x[:, a:b]), 16)[0] for a, b in ((0, 7), (7, 60), (60, L))]  # noqa: B023
    left, right = joined(parts), parts[0].then(parts[1].then(parts[2]))
    whole = passages(tokens, 16)[0]
    for one in (left, right):
        torch.testing.assert_close(one.root.mT @ one.root, whole.root.mT @ whole.root, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(one.Phi, whole.Phi, rtol=1e-12, atol=1e-14)
    nothing = Passage.empty(2, N, False, whole.root)
    assert torch.equal(nothing.then(whole).root, whole.root)
    assert math.isclose(float(nothing.then(whole).norm.max()), float(whole.norm.max()), rel_tol=0.1)
