"""A failure as a program that shows it: the tensors stand in it, so that it needs nothing but the package."""

from __future__ import annotations

import base64
import zlib

import torch
from torch import Tensor

from .judge import Failure

# tensors with more entries are written as compressed bytes
MOST_WRITTEN_OUT = 300


def program(failure: Failure) -> str:
    """Python source; what it prints stands beside what is right."""
    case, question = failure.case, failure.question
    packed = any(x.numel() > MOST_WRITTEN_OUT for x in case.inputs.values())
    lines = ["import torch", "", "import ess_kernels as ek", ""]
    if packed:
        lines[:1] = ["import base64, zlib", "import numpy as np", "import torch"]
    lines.append("inf = float('inf')")
    there = "" if question.device == "cpu" else f".to({question.device!r})"
    lines += [f"{name} = {_literal(x)}{there}" for name, x in case.inputs.items()]
    arguments = [f"{name}={name}" for name in case.inputs] + [f"{k}={v!r}" for k, v in case.options.items()]
    lines.append(f"op = ek.operators.{case.family}({', '.join(arguments)})")
    lines.append(f"print({question.call})")
    where = f"head {failure.head}, position {failure.position}"
    lines.append(f"# {failure.what}: {where}: {failure.words}")
    return "\n".join(lines)


def _literal(x: Tensor) -> str:
    if x.dtype not in (torch.bool, torch.float64):
        return f"{_literal(x.double())}.to({x.dtype})"
    dtype = "bool" if x.dtype == torch.bool else "float64"
    if x.numel() <= MOST_WRITTEN_OUT:
        return f"torch.tensor({x.tolist()}, dtype=torch.{dtype})"
    text = base64.b85encode(zlib.compress(x.contiguous().numpy().tobytes(), 9)).decode()
    return (
        f"torch.from_numpy(np.frombuffer(zlib.decompress(base64.b85decode({text!r})), "
        f"dtype={dtype!r}).reshape({list(x.shape)}).copy())"
    )
