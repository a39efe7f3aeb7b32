"""Hashes of what the native backend answers for every hard operator of `cases.py`, at every dispatch level.

For changes of the compiled kernels that must not change a number: record the hashes before, compare them afterwards, on
the same machine (mathematical functions differ from one C library to the next).

    python tests/native/hashes.py --record before.json
    python tests/native/hashes.py --compare before.json
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from torch import Tensor

import ess_kernels as ek
from ess_kernels import environment
from ess_kernels.operators import Operator
from ess_kernels.operators.rank_one import RankOneStateSpace
from ess_kernels.testing import cases

TOLERANCES = {"atol": [1e-1, 1e-3, 1e-6, 0.0], "rtol": [1e-2, 1e-5, 1e-8]}


def larger() -> dict[str, Operator]:
    """Operators that need larger blocks, or more of them, than the hard ones."""
    torch.manual_seed(0)
    found: dict[str, Operator] = {}
    for n in (16, 40, 130):
        q, k, g = torch.randn(3, 1, 300, 2, n, dtype=torch.float64)
        found[f"gla of {n} states"] = ek.operators.gla(q, k, -g.abs() / 8)
    q, k = torch.randn(2, 1, 2, 300, 24, dtype=torch.float64)
    found["attention, 300 long"] = ek.operators.attention(q, k)
    A, B, C = 0.15 * torch.randn(2, 200, 40, 40, dtype=torch.float64), *torch.randn(2, 2, 200, 40, dtype=torch.float64)
    found["dense transitions of 40 states"] = ek.operators.recurrence(A, B, C, diagonal=False)
    for n in (16, 40, 130):
        q, k, g = torch.randn(3, 1, 300, 2, n, dtype=torch.float64)
        k, beta = torch.nn.functional.normalize(k, dim=-1), torch.rand(1, 300, 2, dtype=torch.float64)
        found[f"delta rule of {n} states"] = RankOneStateSpace(q, k, -g.abs() / 8, write_scale=beta)
        found[f"dplr of {n} states"] = RankOneStateSpace(q, k, -g.abs() / 8, lookup=-k, update=k * beta[..., None])
    return found


def answers(op: Operator) -> dict[str, list[Tensor]]:
    """All that the backend can be asked about an operator, by the name of the question."""
    found: dict[str, list[Tensor]] = {}
    for kind, values in TOLERANCES.items():
        counts, certificate = ek.tolerance_ess(op, **{kind: values}, backend="native", certificate=True)
        found[kind] = [counts, certificate.width, certificate.redone, certificate.unresolved]
    ess, certificate = ek.entropy_ess(op, backend="native", certificate=True)
    found["entropy"] = [ess, certificate.error, certificate.total, certificate.unresolved]
    if op.length > 1:
        found["values"] = [ek.singular_values(op, list(range(1, op.length, 7)), backend="native")]
    return found


def digest(tensors: list[Tensor]) -> str:
    hashed = hashlib.sha256()
    for x in tensors:
        hashed.update(x.contiguous().numpy().tobytes())
    return hashed.hexdigest()[:16]


def hashes() -> dict[str, str]:
    """`level/case/question` to its hash."""
    found = {}
    for level in ("baseline", "avx2", "avx512"):
        os.environ[environment.CPU_LEVEL] = level
        native = next(b for b in ek.show_config().backends if b.name == "native")
        if not native.usable:
            print(f"{level}: not here ({native.reason})")
            continue
        operators = {name: cases.build(name) for name in cases.names()} | larger()
        for name, op in operators.items():
            for question, tensors in answers(op).items():
                found[f"{level}/{name}/{question}"] = digest(tensors)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", type=Path, metavar="FILE")
    parser.add_argument("--compare", type=Path, metavar="FILE")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = hashes()
    if options.record:
        options.record.write_text(json.dumps(found, indent=1) + "\n")
    print(f"{len(found)} answers")
    if options.compare:
        before = json.loads(options.compare.read_text())
        changed = sorted(key for key in before.keys() | found.keys() if before.get(key) != found.get(key))
        print(f"{len(changed)} differ from {options.compare}", *changed[:20], sep="\n  ")
        return bool(changed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
