"""Correctness on the device, before anything is timed: groups of checks, each against float64 references.

    PYTHONPATH=$PWD/bench python -m gpu_runs.checks --output FILE --groups NAME,NAME [--toy]

A line of JSON a check: an error and what is allowed. Inputs are drawn afresh at every run (the seed is in the file) and
every tensor that is not written is full of NaN.
"""

from __future__ import annotations

import argparse
import json
import secrets
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

import ess_kernels as ek
from ess_kernels import reference
from ess_kernels.backends.sources import source_of
from ess_kernels.backends.triton.attention import products, softmax
from ess_kernels.backends.triton.matrix import elimination, halves
from ess_kernels.backends.triton.recurrence import boundary, parts, rank_one, roots, scans, small, weights
from ess_kernels.backends.triton.spectra import values as spectra
from ess_kernels.backends.triton.staircase.descent import Roots, descend
from ess_kernels.engine import staircase
from ess_kernels.engine.quadrature import FINE, STANDARD
from ess_kernels.engine.thin_products import Bands
from ess_kernels.operators import Operator
from ess_kernels.operators.packing import pack, unpack
from ess_kernels.testing import cases
from ess_kernels.testing.recurrences import HARD

from .compiling import tell_compiled
from .inputs import DEVICE, attention, gated_delta_rule, gla, kda, mamba, require_device, rwkv7, ssd
from .measure import DEAD, alive, described

DOUBLE = torch.float64
# name, error, allowed
Check = tuple[str, float, float]
TOY = False


def error(found: Tensor, expected: Tensor) -> float:
    """The largest difference over the largest magnitude; NaN and what was not written are infinitely wrong."""
    if found.shape != expected.shape or bool((found.isnan() != expected.isnan()).any()):
        return float("inf")
    found, expected = found.nan_to_num(), expected.nan_to_num()
    if not expected.numel():
        return 0.0
    return float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-300))


def fresh(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=DOUBLE, device=DEVICE)


def seed() -> int:
    return int(torch.randint(1 << 30, ()))


# --- kernels against their twins --------------------------------------------------------------------------------------


def recurrences() -> Iterator[tuple[str, Operator, int]]:
    """Names, operators and tokens a block: odd lengths, states that need padding."""
    yield "gla, n = 5", gla(37, 5, 2, seed=seed(), dtype=DOUBLE), 16
    if not TOY:
        yield "gla, n = 33", gla(130, 33, 3, seed=seed()), 32
        yield "ssd, n = 128", ssd(150, 128, 2, seed=seed()), 64
        yield "mamba, n = 20", mamba(70, 20, 3, seed=seed()), 32


def parts_scans_and_roots() -> Iterator[Check]:
    for name, op, c in recurrences():
        heads = op.all_heads()
        units = torch.ones(len(heads), dtype=DOUBLE, device=DEVICE)
        built = parts.build(source_of(op, heads), 0.5 * units, 4 * units, c)
        twin = parts.build_in_torch(op.tokens(heads), c)
        n = op.state_size
        for part, factor in (("X", 0.5), ("Z", 4.0), ("Y", 2.0), ("Phi", 1.0)):
            found, expected = getattr(built, part), factor * getattr(twin, part)
            yield f"parts, {name}: {part}", error(found[..., : expected.shape[-1]], expected), 1e-12
        padding = sum(float(x[..., n:].abs().sum()) for x in (built.X, built.Z))
        yield f"parts, {name}: padding is zero", padding, 0.0
        P, Q = scans.gramians(built, len(heads))
        for found, expected, which in zip((P, Q), scans.gramians_in_torch(built, len(heads)), "PQ", strict=True):
            yield f"scan, {name}: {which}", error(found, expected), 1e-12
        mass = torch.rand(P.shape[:2], dtype=DOUBLE, device=DEVICE)
        for kind, allowed in (("shifted", 8 * roots.shift(P.shape[1])), ("pivoted", 64 * roots.EPS)):
            F, size = getattr(roots, f"{kind}_roots")(P, mass)
            diagonal_ = P.diagonal(dim1=1, dim2=2)
            unit = (diagonal_[:, :, None] * diagonal_[:, None]).sqrt().clamp_min(1e-300)
            yield f"{kind} root, {name}", float(((F.mT @ F - P) / unit).abs().max()), allowed
            yield f"{kind} root, {name}: size", error(size, (F.square() @ mass[..., None])[..., 0].amax(1)), 1e-11


def rank_one_parts() -> Iterator[Check]:
    """Delta rules, which take away what they look up, and RWKV-7, which has updates of its own."""
    for length, n, c in ((21, 5, 16),) if TOY else ((37, 5, 16), (70, 33, 32), (150, 128, 64), (130, 256, 64)):
        for name, family in (("KDA", kda), ("RWKV-7", rwkv7)):
            op = family(length, n, 2, seed=seed(), dtype=DOUBLE)
            tokens = op.tokens(op.all_heads())
            built, twin = rank_one.build(tokens, c), rank_one.build_in_torch(tokens, c)
            for part, padded in (("X", 1), ("Z", 1), ("Y", 0), ("Phi", 2)):
                found, expected = getattr(built, part), getattr(twin, part)
                if padded:
                    found = found[..., :n]
                if padded == 2:
                    found = found[:, :n]
                yield f"rank-one parts, {name}, n = {n}: {part}", error(found, expected), 1e-12
            padding = sum(float(x[..., n:].abs().sum()) for x in (built.X, built.Z))
            yield f"rank-one parts, {name}, n = {n}: padding is zero", padding, 0.0
    yield from substitutions_where_keys_repeat()


def substitutions_where_keys_repeat() -> Iterator[Check]:
    """An inverse by doubling would lose most digits of these."""
    for c, step, spread in ((16, 2.0, 0.0),) if TOY else ((32, 2.0, 0.0), (64, 2.0, 0.0), (64, 1.9, 1e-3)):
        keys = torch.nn.functional.normalize(fresh(1, 1, c) + spread * fresh(5, c, c), dim=-1)
        triangle = torch.eye(c, dtype=DOUBLE, device=DEVICE) + (keys @ (step * keys).mT).tril(-1)
        state, own = step * keys, (fresh(5, c, c) @ keys.mT).tril()
        expected = [x.clone() for x in (state, own)]
        rank_one.substitute_in_torch(triangle, *expected)
        rank_one.substitute(triangle, state, own)
        for what, found, right in zip(("state", "own rows"), (state, own), expected, strict=True):
            yield f"substitution, c = {c}, steps of {step}, keys within {spread}: {what}", error(found, right), 1e-12


def outside(items: int, n: int, c: int) -> boundary.Outside:
    """Pieces of a boundary as they belong together; at `tau = 1` there are values on both sides."""
    Q, F = fresh(items, n, n) / n**0.5, fresh(items, n, n) / n**0.5
    Q = Q @ Q.mT
    X, Z = fresh(items, c, n) / n**0.5, fresh(items, c, n) / n**0.5
    AE = torch.cat([F @ X.mT, F @ Q @ Z.mT], 2)
    Y = fresh(items, c, c).tril(-1) / n**0.5
    return boundary.Outside(*(x.contiguous() for x in (F @ Q @ F.mT, AE, Z @ Q @ Z.mT, Y)))


def boundaries() -> Iterator[Check]:
    for n, c in ((32, 32),) if TOY else ((32, 32), (64, 32), (96, 64), (128, 64), (256, 64)):
        pieces = outside(3, n, c)
        J = 7 if TOY else 700
        which = torch.arange(J, device=DEVICE) % 3
        tau = torch.linspace(0.4, 2.0, J, dtype=DOUBLE, device=DEVICE) * 2.0 ** fresh(J).clamp(-1, 1)
        growth = torch.arange(J, dtype=DOUBLE, device=DEVICE)
        for definite in (True,) if TOY else (False, True):
            arguments = (pieces, which, tau, growth, which, which, definite)
            found, expected = boundary.eliminate(*arguments), boundary.eliminate_in_torch(*arguments)
            # a tolerance near a value of a leading part magnifies rounding errors: they are judged by the growth
            compared = torch.ones_like(tau, dtype=torch.bool) if definite else expected.growth - growth < 1e5
            name = f"boundary, n = {n}, {'log-determinants' if definite else 'counts'}"
            yield f"{name}: R, K, C", error(found.rkc[compared], expected.rkc[compared]), 1e-7
            yield f"{name}: value", error(found.value[compared], expected.value[compared]), 1e-10
            yield f"{name}: most pairs compared", float((~compared).double().mean()), 0.5


def nodes(J: int, m: int, definite: bool) -> Roots:
    A = fresh(J, 2 * m, 2 * m)
    R, K, C = A[:, :m, :m], A[:, :m, m:], A[:, m:, m:]
    one = torch.eye(m, dtype=DOUBLE, device=DEVICE)
    R, C = (one + R @ R.mT, -one - C @ C.mT) if definite else (R + R.mT, C + C.mT)
    index = torch.arange(J, device=DEVICE)
    zeros = torch.zeros(J, dtype=DOUBLE, device=DEVICE)
    rkc = torch.stack([R, K, C], 1).contiguous()
    return Roots(rkc, zeros, zeros.clone(), zeros + torch.inf, index * m, torch.full_like(index, m))


def staircases() -> Iterator[Check]:
    for m, J in ((16, 3),) if TOY else ((8, 1001), (16, 333), (32, 101), (64, 37)):
        for definite in (False, True):
            given = nodes(J, m, definite)
            found = [torch.full((J * m,), torch.nan, dtype=DOUBLE, device=DEVICE) for _ in range(3)]
            descend(given, *found, definite)
            answer = staircase.Answer.of(torch.ones(J, m, dtype=torch.bool, device=DEVICE))
            item = torch.arange(J, device=DEVICE)
            start = torch.zeros_like(item)
            state = (given.value.clone(), given.growth.clone(), given.least.clone())
            R, K, C = (x.clone() for x in given.rkc.unbind(1))
            staircase.descend(staircase.Nodes(R, K, C, *state, item, start, start + m), answer, definite, 1 << 28)
            value = found[0].view(J, m)
            name = f"staircase, nodes of {m}, {'log-determinants' if definite else 'counts'}"
            if definite:
                yield name, error(value, answer.value), 1e-9
            else:
                compared = (answer.growth < 1e6) & (answer.least > 1e-4)
                yield f"{name}: wrong", float((value != answer.value)[compared].sum()), 0.0
                yield f"{name}: most positions compared", float((~compared).double().mean()), 0.5
                low = (found[1].view(J, m) < answer.growth * (1 - 1e-6))[compared]
                yield f"{name}: growth is a bound", float(low.sum()), 0.0


def small_states() -> Iterator[Check]:
    operators = {"gla, n = 5": gla(37, 5, 2, seed=seed()), "mamba, n = 16": mamba(53, 16, 3, seed=seed())}
    for name, op in list(operators.items())[: 1 if TOY else 2]:
        heads = op.all_heads()
        units = torch.ones(len(heads), dtype=DOUBLE, device=DEVICE)
        source = source_of(op, heads)
        P, Q = small.gramians(source, units, units)
        built = parts.build_in_torch(op.tokens(heads), 16)
        padding = 16 - op.state_size
        X, Z, Phi = (torch.nn.functional.pad(x, (0, padding)) for x in (built.X, built.Z, built.Phi))
        known = scans.gramians_in_torch(type(built)(X, built.Y, Z, Phi), len(heads))
        for found, expected, which in zip((P, Q), known, "PQ", strict=True):
            yield f"small scan, {name}: {which}", error(found, expected), 1e-12
        item = torch.arange(len(P), device=DEVICE)
        F, _ = roots.shifted_roots_in_torch(P, torch.ones_like(P[:, 0]))
        carried = F * Phi[:, None]
        AE = torch.cat([F @ X.mT, carried @ Q @ Z.mT], 2)
        pieces = boundary.Outside(carried @ Q @ carried.mT, AE, Z @ Q @ Z.mT, built.Y.contiguous())
        tau = 0.1 * pieces.S.diagonal(dim1=1, dim2=2).sum(1).clamp_min(1e-6).sqrt()[:, None]
        out = small.eliminate(source, units, units, P, Q, item, tau, torch.ones_like(tau, dtype=torch.bool), False)
        expected = boundary.eliminate_in_torch(pieces, item, tau[:, 0], 0 * tau[:, 0], item, item, False)
        compared = expected.growth < 1e5
        yield f"small elimination, {name}: R, K, C", error(out.rkc[compared], expected.rkc[compared]), 1e-7
        yield f"small elimination, {name}: wrong", float((out.value != expected.value)[compared].sum()), 0.0
        yield f"small elimination, {name}: most compared", float((~compared).double().mean()), 0.5


def dense_kernels() -> Iterator[Check]:
    for definite in (False, True):
        kind = "log-determinants" if definite else "counts"
        for size in (16,) if TOY else (16, 48, 64):
            h, width = 64, 144
            sign = torch.tensor([1.0, -1.0], dtype=DOUBLE, device=DEVICE)
            A = fresh(2, h, h)
            E = (A @ A.mT + torch.eye(h, dtype=DOUBLE, device=DEVICE)) * sign[:, None, None] if definite else A + A.mT
            M = torch.cat([E, fresh(2, h, width - h)], -1).contiguous()
            state = [M, fresh(2, h), fresh(2), fresh(2, width).abs(), fresh(2, h), sign]
            known = [x.clone() for x in state]
            elimination.diagonal(state[0], size, *state[1:], 0, definite)
            elimination.diagonal_twin(known[0], size, *known[1:], 0, definite)
            factors = [x[0][:, :size, :size].triu() for x in (state, known)]
            yield f"diagonal, {size} pivots, {kind}: D L^T", error(*factors), 1e-7
            for what, found, expected in zip(("1 / d", "value"), state[1:3], known[1:3], strict=True):
                yield f"diagonal, {size} pivots, {kind}: {what}", error(found, expected), 1e-7
            scaled, reach = torch.zeros_like(M), torch.zeros(2, 5, h, dtype=DOUBLE, device=DEVICE)
            found = [M, scaled, state[1], state[3], reach]
            known = [x.clone() for x in found]
            elimination.rows(found[0], size, *found[1:], 0, definite)
            elimination.rows_twin(known[0], size, *known[1:], 0, definite)
            for what, one, other in zip(("rows", "scaled"), found, known, strict=False):
                one, other = one[:, :size, size:], other[:, :size, size:]
                yield f"rows, {size} pivots, {kind}: {what}", error(one, other), 1e-9
        yield from layouts(definite, kind)


def layouts(definite: bool, kind: str) -> Iterator[Check]:
    """`halves.children` and `halves.edge` next to their twins."""
    m, h, B = (40, 32, 2) if TOY else (150, 80, 5)
    kept, update = fresh(3, 3, m, m), fresh(3, 3, m, m)
    parent = torch.arange(B, device=DEVICE) % 3
    side = torch.arange(B, device=DEVICE) % 2
    T = fresh(2, 2 * m + 3, 2 * m + 3).tril(-1)
    gram = fresh(2, m, m)
    head = parent % 2
    inverse = torch.rand(B, dtype=DOUBLE, device=DEVICE) + 0.5
    for name, call, twin in (
        ("children", halves.children, halves.children_twin),
        ("edge", halves.edge, halves.edge_twin),
    ):
        results = []
        for function in (call, twin):
            M = torch.full((B, h, 3 * h), torch.nan, dtype=DOUBLE, device=DEVICE)
            following = torch.full((B, 3, h, h), torch.nan, dtype=DOUBLE, device=DEVICE)
            if name == "children":
                function(kept, update, parent, side, M, following, definite)
            else:
                function(T, gram, head, inverse, True, M, following, definite)
            results.append((M, following))
        for what, found, expected in zip(("[E V1 V2]", "kept"), *results, strict=True):
            yield f"{name}, {kind}: {what}", error(found, expected), 1e-13


def attention_kernels() -> Iterator[Check]:
    for length, n, heads in ((40, 8, 1),) if TOY else ((130, 40, 3), (257, 64, 2)):
        op = attention(length, n, heads, seed=seed(), dtype=torch.float32)
        every = op.all_heads()
        name = f"L = {length}, {n} numbers a query"
        yield f"attention tiles, {name}", error(softmax.tiles(op, every), op.rows(every, 0, length)), 1e-12
        where = torch.tensor([length // 3, length // 2], device=DEVICE)
        X = fresh(heads, 2, length, 24)
        twin = Bands(op, every, 1 << 28)
        for transposed in (False, True):
            found = products.thin_product(op, every, where, X, transposed)
            expected = twin(where, X, transposed)
            yield f"attention product{' transposed' * transposed}, {name}", error(found, expected), 1e-12


def many_spectra() -> Iterator[Check]:
    shapes = ((5, 8, 8),) if TOY else ((1001, 8, 8), (333, 24, 17), (101, 64, 64), (7, 200, 100), (3, 256, 256))
    for batch, m, n in shapes:
        for dtype in (torch.float32, DOUBLE) if not TOY else (torch.float32,):
            A = fresh(batch, m, n).to(dtype)
            A[batch // 2] = 0.0
            expected = torch.linalg.svdvals(A.double().cpu())
            found = spectra.singular_values(A).double().cpu()
            allowed = 40 * torch.finfo(dtype).eps * max(m, n) ** 0.5
            yield f"singular values, {batch} of {m} x {n}, {str(dtype)[6:]}", error(found, expected), allowed


def sums_over_shifts() -> Iterator[Check]:
    for quadrature in (STANDARD,) if TOY else (STANDARD, FINE):
        values = torch.rand(2, 300, 5, dtype=DOUBLE, device=DEVICE)
        t = quadrature.nodes(values.device)[:, None, None]
        logdets = torch.log1p(values[:, None].square() / t).sum(-1)
        cap = torch.full((300,), 5.0, dtype=DOUBLE, device=DEVICE)
        rounding = torch.full((2, 300), 1e-17, dtype=DOUBLE, device=DEVICE)
        results = (f(logdets, cap, rounding) for f in (partial(weights.estimate, quadrature), quadrature.estimate))
        for what, found, expected in zip(("entropy", "bound", "sum of values"), *results, strict=True):
            yield f"sum over {len(t)} shifts: {what}", error(found, expected), 1e-9


# --- whole answers ----------------------------------------------------------------------------------------------------


def values_of(op: Operator) -> Tensor:
    """Float64 singular values at all positions, `[*batch, L - 1, S]`, by LAPACK."""
    parts_ = pack(op)
    assert parts_ is not None
    there = unpack([None if x is None else x.cpu() for x in parts_.tensors], *parts_[1:])
    return reference.reference_singular_values(there).to(DEVICE)


def answers(name: str, op: Operator, entropy: bool = True, relative: bool = True) -> Iterator[Check]:
    """Counts at tolerances over eight decades and on singular values; entropy."""
    values = values_of(op)
    top = float(values.max()) or 1.0
    middle = values.reshape(-1, *values.shape[-2:])[0, op.length // 3]
    ties = [float(middle[0]), float(middle[min(2, len(middle) - 1)])]
    tolerances = [top * x for x in ((1e-2,) if TOY else (1e-1, 1e-3, 1e-5, 1e-7))] if relative else [1e-3]
    tolerances += [x for x in ties if x > 0]
    counts = ek.tolerance_ess(op, tolerances, backend="triton")
    tau = torch.tensor(tolerances, dtype=DOUBLE, device=DEVICE).view(-1, *[1] * (values.dim() - 1))
    # nearer than this to the tolerance LAPACK itself cannot tell
    near = ((values - tau[..., None]).abs() <= 256 * roots.EPS * values[..., :1]) & (values > 0)
    wrong = (counts != (values > tau[..., None]).sum(-1)) & ~near.any(-1)
    yield f"{name}: wrong of {counts.numel()} counts", float(wrong.sum()), 0.0
    again = ek.tolerance_ess(op, tolerances, backend="triton")
    yield f"{name}: counts that change on repeat", float((again != counts).sum()), 0.0
    if entropy:
        ess = ek.entropy_ess(op, backend="triton")
        p = values / values.sum(-1, keepdim=True).clamp_min(1e-300)
        expected = torch.exp(-torch.special.xlogy(p, p).sum(-1)).masked_fill(values[..., 0] == 0, 0.0)
        yield f"{name}: entropy", float(((ess - expected).abs() / expected.clamp_min(1)).max()), 1e-4
        same = torch.equal(ess, ek.entropy_ess(op, backend="triton"))
        yield f"{name}: entropy that changes on repeat", float(not same), 0.0


def hard_recurrences(n: int) -> Callable[[], Iterator[Check]]:
    def checks() -> Iterator[Check]:
        for name, build in list(HARD.items())[: 1 if TOY else None]:
            yield from answers(f"{name}, L = {20 if TOY else 256}, n = {n}", build(20 if TOY else 256, n))

    return checks


def hard_cases(*prefixes: str) -> Callable[[], Iterator[Check]]:
    """The operators of the tests, moved to the device."""
    # of tiny or huge numbers LAPACK has no tolerance at hand; every further state size takes long to compile
    without = ("tin", "hug", "beyond", "far", "gla: length")

    def checks() -> Iterator[Check]:
        names = [name for name in cases.names(*prefixes) if not any(word in name for word in without)]
        for name in names[: 1 if TOY else None]:
            packed = pack(cases.build(name))
            assert packed is not None
            op = unpack([None if x is None else x.to(DEVICE) for x in packed.tensors], *packed[1:])
            if op.length > 1:
                yield from answers(name, op, entropy=False)

    return checks


def typical_inputs() -> Iterator[Check]:
    for name, op in (
        ("GLA, L = 256, n = 64", lambda: gla(256, 64, 2, seed=seed())),
        ("Mamba-2, L = 200, n = 128", lambda: ssd(200, 128, 2, seed=seed())),
        ("Mamba, L = 256, n = 16", lambda: mamba(256, 16, 4, seed=seed())),
        ("gated delta rule, L = 200, n = 128", lambda: gated_delta_rule(200, 128, 2, seed=seed())),
        ("KDA, L = 256, n = 64", lambda: kda(256, 64, 2, seed=seed())),
        ("RWKV-7, L = 256, n = 64", lambda: rwkv7(256, 64, 2, seed=seed())),
        ("attention, L = 256", lambda: attention(256, 64, 2, seed=seed())),
    )[: 0 if TOY else None]:
        yield from answers(name, op(), relative=False)


def same_without_poison() -> Iterator[Check]:
    """Bit for bit the same answers whatever was in the memory before."""
    op = mamba(20, 8, 1, seed=seed()) if TOY else gla(300, 64, 3, seed=seed())
    poisoned = ek.tolerance_ess(op, backend="triton", certificate=True)
    torch.use_deterministic_algorithms(False)
    try:
        plain = ek.tolerance_ess(op, backend="triton", certificate=True)
    finally:
        poison()
    yield "counts with and without poison: differ", float((plain[0] != poisoned[0]).sum()), 0.0
    yield "widths with and without poison: differ", float((plain[1].width != poisoned[1].width).sum()), 0.0


def poison() -> None:
    """From now on PyTorch fills what it allocates with NaN, and integers with their largest."""
    warnings.filterwarnings("ignore", message=".*deterministic.*")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True


GROUPS: dict[str, Callable[[], Iterator[Check]]] = {
    "parts and scans": parts_scans_and_roots,
    "rank-one parts": rank_one_parts,
    "boundaries": boundaries,
    "staircases": staircases,
    "small states": small_states,
    "dense kernels": dense_kernels,
    "attention kernels": attention_kernels,
    "spectra": many_spectra,
    "shifts": sums_over_shifts,
    "poison": same_without_poison,
    "typical inputs": typical_inputs,
    "hard delta rules": hard_cases("kda:", "rwkv7"),
    "hard recurrences n=16": hard_recurrences(16),
    "hard recurrences n=64": hard_recurrences(64),
    "hard cases gla": hard_cases("gla:"),
    "hard cases attention and dense": hard_cases("attention:", "dense:"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="lines of JSON are appended here")
    parser.add_argument("--groups", default=",".join(GROUPS))
    parser.add_argument("--toy", action="store_true")
    parser.add_argument("--seed", type=int, default=None)
    arguments = parser.parse_args()
    require_device(arguments.toy)
    global TOY
    TOY = arguments.toy
    number = secrets.randbelow(1 << 30) if arguments.seed is None else arguments.seed
    poison()
    with arguments.output.open("a") as out:

        def say(**line: object) -> None:
            out.write(json.dumps(line) + "\n")
            out.flush()

        tell_compiled(say)
        for group in arguments.groups.split(","):
            torch.manual_seed(number)
            begin = time.perf_counter()
            say(kind="start", key=group, seed=number)
            try:
                for name, off, allowed in GROUPS[group]():
                    # NaN is no small error
                    say(kind="check", group=group, name=name, error=off, allowed=allowed, ok=bool(off <= allowed))
            except Exception as problem:
                say(kind="check", group=group, name="the group itself", problem=described(problem), ok=False)
            say(kind="end", key=group, seconds=time.perf_counter() - begin)
            if not alive():
                sys.exit(DEAD)


if __name__ == "__main__":
    main()
