"""The rows of `gpu.py`, measured one after the other in a process of their own; a line of JSON each, written at once.

    PYTHONPATH=$PWD/bench python -m gpu_runs.measure --output FILE --rows KEY,KEY [--seconds S] [--toy]

`--toy` runs everything at toy sizes in Triton's interpreter. Exit status 3: the device no longer answers, and what was
not measured needs another process.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import ess_kernels as ek
from ess_kernels import operators
from ess_kernels.environment import MEMORY_BUDGET
from ess_kernels.operators.structure import StateSpace

from .cases import ATOL, FIRST, Row, Sizes, row
from .compiling import tell_compiled
from .inputs import DEVICE, matrices, normal, operator, require_device
from .peers import layer_forward, spectra_peers
from .timing import CUDA, ceilings, clock, synchronize, taken_apart

LARGE_BUDGET = "8GiB"
# of so many heads a row's answers are checked, at two positions
CHECKED_HEADS = 4
# the longest attention that a singular value decomposition checks
LONGEST_DENSE = 2048
DEAD = 3

Figures = dict[str, Any]


class Mode:
    """How much is done: everything, once at the sizes for a rehearsal (rehearse.py), or at toy sizes."""

    def __init__(self, toy: bool, warm: bool = False):
        self.toy, self.once = toy, toy or warm
        self.warm = warm

    def sizes(self, row: Row) -> Sizes:
        return row.toy if self.toy else row.warm if self.warm else row.sizes

    def peer_sizes(self, row: Row) -> Sizes:
        return row.toy if self.toy else row.peer


@contextmanager
def memory_budget(size: str) -> Iterator[None]:
    before = os.environ.get(MEMORY_BUDGET)
    os.environ[MEMORY_BUDGET] = size
    try:
        yield
    finally:
        os.environ.pop(MEMORY_BUDGET)
        if before is not None:
            os.environ[MEMORY_BUDGET] = before


def attempt(figures: Figures, name: str, function: Callable[[], Figures]) -> None:
    """Adds what the function finds; a failure becomes a line of its own and stops nothing else."""
    failed = True
    try:
        figures.update(function())
        failed = False
    except Exception as error:
        figures.setdefault("failures", {})[name] = described(error)
    # only here is what the error's traceback held free
    if failed and CUDA:
        # an error that came from a kernel stays with the process: this raises, and the row ends
        torch.cuda.synchronize()
        torch.cuda.empty_cache()


def described(error: BaseException) -> str:
    where = traceback.extract_tb(error.__traceback__)[-1]
    text = " ".join(str(error).split())
    return f"{type(error).__name__} in {Path(where.filename).name}:{where.lineno}: {text[:300]}"


def ask(op: operators.Operator, row: Row, sizes: Sizes, backend: str) -> Any:
    """The public call that a row is about."""
    if row.metric == "counts":
        return ek.tolerance_ess(op, atol=ATOL, backend=backend, certificate=True)
    if row.metric == "entropy":
        return ek.entropy_ess(op, backend=backend)
    from ess_kernels.randomized import randomized_ess

    return randomized_ess(
        op,
        positions(sizes),
        atol=ATOL,
        rank=sizes["rank"],
        power_iterations=sizes["iterations"],
        backend=backend,
    )


def positions(sizes: Sizes) -> list[int]:
    """Evenly spread, the ends left out."""
    count, length = sizes["positions"], sizes["length"]
    return [round((k + 1) * length / (count + 1)) for k in range(count)]


# --- rows -------------------------------------------------------------------------------------------------------------


def measure(row: Row, mode: Mode, seconds: float, figures: Figures) -> None:
    """Fills in all figures of a row; `failures` says what could not be had."""
    sizes = mode.sizes(row)
    figures["sizes"] = dict(sizes)
    if row.family == "spectra":
        attempt(figures, "measured", lambda: spectra(row, mode, seconds, figures))
        return
    answers: list[Any] = []
    with_operator(row, mode, seconds, figures, answers)
    if answers:
        attempt(figures, "checked", lambda: {"checked": checked(row, sizes, answers[0])})
        answers.clear()
    attempt(figures, "layer", lambda: layer(row, sizes, mode, figures))
    attempt(figures, "peer", lambda: torch_engine(row, mode, seconds / 3, figures))


def with_operator(row: Row, mode: Mode, seconds: float, figures: Figures, answers: list[Any]) -> None:
    """What needs the whole operator, which is gone afterwards."""
    sizes = mode.sizes(row)
    op = operator(row, sizes)
    attempt(figures, "measured", lambda: timed(op, row, mode, seconds, figures, answers))
    if row.key == FIRST:
        attempt(figures, "stages", lambda: {"stages": stages(op, row, sizes, mode)})
    if not mode.once and row.metric in ("counts", "entropy"):
        attempt(figures, "large budget", lambda: with_large_budget(op, row, sizes, seconds / 3))
    if row.metric == "randomized":
        attempt(figures, "products", lambda: product_time(op, sizes, figures, mode))


def timed(
    op: operators.Operator, row: Row, mode: Mode, seconds: float, figures: Figures, answers: list[Any]
) -> Figures:
    """Times the public call and keeps its answer."""
    sizes = mode.sizes(row)
    inputs = 0
    if CUDA:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        inputs = torch.cuda.memory_allocated()

    def call() -> None:
        answers[:] = [ask(op, row, sizes, "triton")]

    # compiled and measured for memory first, with the workspace of nothing else in the way
    first = clock(call, 0.0, once=True)
    figures.update(first)
    if CUDA:
        figures["peak_gb"] = (torch.cuda.max_memory_allocated() - inputs) / 1e9
    if not mode.once:
        figures.update(clock(call, seconds) | {"first_ms": first["ms"]})
    return judged(row, answers[0])


def judged(row: Row, answer: Any) -> Figures:
    """What can be said of an answer by looking at it."""
    if row.metric == "counts":
        counts, certificate = answer
        if bool((counts < 0).any()):
            raise ValueError(f"{int((counts < 0).sum())} of {counts.numel()} counts are -1")
        return {
            "redone": float(certificate.redone.double().mean()),
            "unresolved": int(certificate.unresolved.sum()),
            "mean": float(counts.double().mean()),
        }
    if row.metric == "entropy":
        if not bool(answer.isfinite().all()):
            raise ValueError("an entropy is not finite")
        return {"mean": float(answer.mean())}
    return {"certified": float(answer.certified.double().mean()), "mean": float(answer.count.double().mean())}


def with_large_budget(op: operators.Operator, row: Row, sizes: Sizes, seconds: float) -> Figures:
    with memory_budget(LARGE_BUDGET):
        return {"large_budget_ms": clock(lambda: ask(op, row, sizes, "triton"), seconds)["ms"]}


def stages(op: operators.Operator, row: Row, sizes: Sizes, mode: Mode) -> Figures:
    """Milliseconds of each stage, the median of a few calls that are taken apart."""
    runs = []
    for _ in range(1 if mode.once else 5):
        begin = time.perf_counter()
        with taken_apart() as result:
            ask(op, row, sizes, "triton")
            found = result()
        runs.append((1e3 * (time.perf_counter() - begin), found))
    runs.sort(key=lambda run: run[0])
    total, found = runs[len(runs) // 2]
    return {"whole call": {"ms": total, "calls": 1}} | found


def checked(row: Row, sizes: Sizes, answer: Any) -> Figures:
    """The answers of the first heads at a few positions against float64 singular values by decompositions."""
    op = operator(row, sizes, CHECKED_HEADS)
    wanted = positions(sizes)[:1] if row.metric == "randomized" else positions(sizes | {"positions": 2})
    if not isinstance(op, StateSpace) and op.length > LONGEST_DENSE and row.metric != "randomized":
        return {"skipped": f"L = {op.length} is too long for decompositions"}
    values = decomposed(op, wanted)
    heads = values.shape[1]
    columns = [positions(sizes).index(i) if row.metric == "randomized" else i - 1 for i in wanted]

    def mine(x: Tensor) -> Tensor:
        return x[:, :heads][..., columns]

    result: Figures = {"heads": heads, "positions": wanted}
    if row.metric == "entropy":
        p = values / values.sum(-1, keepdim=True)
        expected = torch.exp(-torch.special.xlogy(p, p).sum(-1))
        return result | {"error": float((mine(answer) / expected - 1).abs().max())}
    expected = (values > ATOL).sum(-1)
    if row.metric == "counts":
        counts, certificate = answer
        wrong = (mine(counts) != expected) & ~mine(certificate.unresolved)
        return result | {"wrong": int(wrong.sum())}
    certified = mine(answer.certified)
    return result | {
        "wrong": int((certified & (mine(answer.count) != expected)).sum()),
        "certified": int(certified.sum()),
    }


def decomposed(op: operators.Operator, wanted: list[int]) -> Tensor:
    """Singular values `[1, heads, P, S]`; of an operator without a finite state those of its first head.

    Long ones by the Gram matrix of the smaller side: enough for values far above 1e-7 of the largest.
    """
    if isinstance(op, StateSpace):
        return ek.singular_values(op, wanted, backend="torch")
    T = op.dense_heads(op.all_heads()[:1])[0].tril(-1)
    found = []
    for i in wanted:
        H = T[i:, :i]
        if op.length <= LONGEST_DENSE:
            found.append(torch.linalg.svdvals(H))
        else:
            gram = H.mT @ H if H.shape[0] > H.shape[1] else H @ H.mT
            found.append(torch.linalg.eigvalsh(gram).clamp_min(0).sqrt().flip(-1))
    width = max(len(s) for s in found)
    return torch.stack([torch.nn.functional.pad(s, (0, width - len(s))) for s in found])[None, None]


def product_time(op: operators.Operator, sizes: Sizes, figures: Figures, mode: Mode) -> Figures:
    """The randomized answer over the time of its products, at this card's rate for float32 products."""
    length, n, rank = sizes["length"], sizes["n"], sizes["rank"]
    from ess_kernels.engine.sketch import PROBES

    products = 2 * sizes["iterations"] + 2
    columns = products * rank + PROBES
    # scores of the block are formed again for every product, then multiplied with its columns
    operations = sum(2.0 * (length - i) * i * ((products + 1) * n + columns) for i in positions(sizes))
    operations *= sizes["heads"]
    size = 64 if mode.toy else 4096
    A, B = (normal(seed, size, size) for seed in (0, 1))
    rate = 2.0 * size**3 / clock(lambda: A @ B, 0.2, mode.once)["ms"]
    products_ms = operations / rate
    found = {"product_operations": operations, "products_ms": products_ms}
    if "ms" in figures:
        found["per_product_time"] = figures["ms"] / products_ms
    return found


def layer(row: Row, sizes: Sizes, mode: Mode, figures: Figures) -> Figures:
    """The forward pass of the operator's layer, at the row's sizes, and how many of them ESS takes."""
    if mode.toy and row.family != "attention":
        return {}
    name, call = layer_forward(row.family, sizes)
    ms = clock(call, 0.5, mode.once)["ms"]
    found: Figures = {"layer": name, "layer_ms": ms}
    return found | ({"layer_ratio": figures["ms"] / ms} if "ms" in figures else {})


def torch_engine(row: Row, mode: Mode, seconds: float, figures: Figures) -> Figures:
    """The engine in PyTorch and the kernels, both on this device at the peer's sizes."""
    sizes = mode.peer_sizes(row)
    op = operator(row, sizes)
    same = dict(sizes) == figures["sizes"] and "ms" in figures
    kernels = figures["ms"] if same else clock(lambda: ask(op, row, sizes, "triton"), seconds / 2, mode.once)["ms"]
    peer = clock(lambda: ask(op, row, sizes, "torch"), seconds / 2, mode.once)["ms"]
    return {"torch_engine": {"sizes": dict(sizes), "kernels_ms": kernels, "ms": peer, "ratio": peer / kernels}}


def spectra(row: Row, mode: Mode, seconds: float, figures: Figures) -> Figures:
    sizes = mode.sizes(row)
    A = matrices(sizes)
    answers: list[Any] = []

    def call() -> None:
        answers[:] = [ek.small_spectra(A, backend="triton")]

    found = clock(call, seconds, mode.once)
    found["us_per_matrix"] = 1e3 * found["ms"] / len(A)
    figures.update(found)
    some = A[:64]
    values = answers[0].values[:64].double().cpu()
    expected = torch.linalg.svdvals(some.double().cpu())
    found["checked"] = {"matrices": len(some), "error": float(((values - expected) / expected[:, :1]).abs().max())}
    few = A[: mode.peer_sizes(row)["batch"]]
    peers: Figures = {}
    figures.update(found | {"peers": peers})
    for name, call, count in spectra_peers(few, A):
        attempt(peers, name, lambda call=call, name=name, count=count: peer_time(name, call, count, mode))
    theirs = peers.get("torch.linalg.svdvals")
    if theirs:
        found["times_svdvals"] = theirs["us_per_matrix"] / found["us_per_matrix"]
    return found


def peer_time(name: str, call: Callable[[], Any], count: int, mode: Mode) -> Figures:
    found = clock(call, 0.5, mode.once)
    return {name: {"ms": found["ms"], "matrices": count, "us_per_matrix": 1e3 * found["ms"] / count}}


# --- the process ------------------------------------------------------------------------------------------------------


def environment() -> Figures:
    found: Figures = {"torch": torch.__version__, "python": sys.version.split()[0], "ess_kernels": ek.__version__}
    import triton

    found["triton"] = triton.__version__
    if CUDA:
        properties = torch.cuda.get_device_properties(0)
        found |= {
            "card": properties.name,
            "multiprocessors": properties.multi_processor_count,
            "memory_gb": properties.total_memory / 1e9,
            "capability": f"{properties.major}.{properties.minor}",
            "cuda": torch.version.cuda,
            "l2_mb": getattr(properties, "L2_cache_size", 0) / 1e6,
        }
    else:
        found["card"] = "toy sizes in Triton's interpreter, no GPU"
    return found


def matrix_instruction() -> str:
    """The shape of the float64 matrix instruction that this Triton emits for this card."""
    if not CUDA:
        return "none: interpreted"
    from .timing import dot_loop_kernel

    a, b = normal(0, 16, 16, dtype=torch.float64), normal(1, 16, 32, dtype=torch.float64)
    out = torch.empty(1, 16, 32, dtype=torch.float64, device=DEVICE)
    compiled = dot_loop_kernel[(1,)](a, b, out, 32, M=16, N=32, num_warps=1, num_stages=1)
    shapes = set(re.findall(r"mma\.sync\.aligned\.(m\d+n\d+k\d+)\S*f64", compiled.asm["ptx"]))
    return ", ".join(sorted(shapes)) or "none: vector instructions"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="lines of JSON are appended here")
    parser.add_argument("--rows", default="", help="keys, separated by commas; 'ceilings' is one too")
    parser.add_argument("--seconds", type=float, default=200.0, help="for all rows together")
    parser.add_argument("--toy", action="store_true")
    arguments = parser.parse_args()
    require_device(arguments.toy)
    mode = Mode(arguments.toy)
    start = time.perf_counter()
    with arguments.output.open("a") as out:

        def say(**line: Any) -> None:
            out.write(json.dumps(line, default=tensor_value) + "\n")
            out.flush()

        def left() -> float:
            return arguments.seconds - (time.perf_counter() - start)

        tell_compiled(say)
        say(kind="environment", found=environment())
        keys = [key for key in arguments.rows.split(",") if key]
        for number, key in enumerate(keys):
            if left() < 0:
                say(kind="stopped")
                break
            say(kind="start", key=key)
            # most of a row's time goes to what surrounds the timed calls
            seconds = max(0.5, min(4.0, 0.3 * left() / (len(keys) - number)))
            begin = time.perf_counter()
            figures: Figures = {}
            try:
                if key == "ceilings":
                    for found in ceilings(mode.once):
                        say(kind="ceiling", found=found)
                    figures["matrix_instruction"] = matrix_instruction()
                else:
                    measure(row(key), mode, seconds, figures)
                synchronize()
            except Exception as error:
                figures.setdefault("failures", {})["whole row"] = described(error)
            say(kind="end", key=key, found=figures, seconds=time.perf_counter() - begin)
            if not alive():
                sys.exit(DEAD)
            if CUDA:
                torch.cuda.empty_cache()


def alive() -> bool:
    try:
        synchronize()
        return bool((torch.ones(1, device=DEVICE) + 1 == 2).all())
    except Exception:
        return False


def tensor_value(x: Any) -> Any:
    return x.tolist() if isinstance(x, Tensor) else str(x)


if __name__ == "__main__":
    main()
