"""What gradients cost: processor time and memory, forward and backward, one thread, beside what was asked for.

    python bench/gradients.py [--quick] [--metric entropy soft nuclear] [--json FILE]

Every case runs in a process of its own. Its memory is by how much the peak of that process rises above what it held
with the inputs alone, after a small call that loads the libraries; the time is the median of calls after the first one.
The training step is that of a model of two gated linear attentions, with and without a regulariser on the first.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, logsigmoid

import ess_kernels as ek
from ess_kernels.analysis.regularizer import ESSRegularizer
from ess_kernels.metrics import nuclear_norm, soft_ess

METRICS: dict[str, Callable[..., Tensor]] = {
    "entropy": ek.entropy_ess,
    "soft": lambda op, positions: soft_ess(op, 0.1, positions),
    "nuclear": nuclear_norm,
}


class Case(NamedTuple):
    """A gradient, and the milliseconds and megabytes asked for (None: no figure was asked for).

    Attributes:
        positions: how many, spread evenly; None: all of them.
        slow: left out by `--quick`.
    """

    title: str
    family: str
    length: int
    state: int
    heads: int
    positions: int | None
    milliseconds: float | None
    megabytes: float | None
    slow: bool = False


CASES = {
    "few": Case("GLA, 16 positions", "gla", 2048, 64, 1, 16, 100, 80),
    "heads": Case("GLA, 8 heads, 8 positions", "gla", 1024, 16, 8, 8, None, None),
    "all": Case("GLA, all positions", "gla", 1024, 64, 1, None, 2500, 250, slow=True),
    "delta": Case("delta rule, 16 positions", "delta_rule", 1024, 64, 1, 16, None, None),
    "attention": Case("attention, 8 positions", "attention", 512, 64, 1, 8, 150, None),
    "attention-all": Case("attention, all positions", "attention", 512, 64, 1, None, None, None, slow=True),
}
STEP = "a training step with a regulariser, 64 heads of 16, L = 64, 3 positions"
STEP_RATIO = 3.0


def inputs(case: Case) -> tuple[Callable[..., Any], list[Tensor]]:
    """A constructor and float64 leaves for it."""
    torch.manual_seed(0)
    shape = (1, case.length, case.heads, case.state)
    q, k, g = (torch.randn(shape, dtype=torch.float64) for _ in range(3))
    if case.family == "attention":
        tensors = [x.transpose(1, 2).contiguous() for x in (q, k)]
    elif case.family == "delta_rule":
        tensors = [q, nn.functional.normalize(k, dim=-1), g[..., 0].sigmoid()]
    else:
        tensors = [q, k, logsigmoid(g) / 16]
    return getattr(ek.operators, case.family), [x.requires_grad_() for x in tensors]


def differentiate(case: Case, metric: str, construct: Callable[..., Any], tensors: list[Tensor]) -> None:
    if case.positions is None:
        positions = None
    else:
        positions = [case.length * (j + 1) // (case.positions + 1) for j in range(case.positions)]
    torch.autograd.grad(METRICS[metric](construct(*tensors), positions).sum(), tensors)


def peak() -> float:
    """The most megabytes that this process has held."""
    status = Path("/proc/self/status")
    if not status.exists():
        return float("nan")
    found = re.search(r"VmHWM:\s+(\d+)", status.read_text())
    assert found is not None
    return int(found[1]) / 1024


def processor_milliseconds(call: Callable[[], Any], rounds: int) -> float:
    times = []
    for _ in range(rounds):
        start = time.process_time()
        call()
        times.append(time.process_time() - start)
    return 1e3 * statistics.median(times)


def measure(key: str, metric: str) -> dict[str, Any]:
    """One case in this process."""
    case = CASES[key]
    construct, tensors = inputs(case)
    small = case._replace(length=32, positions=2)
    differentiate(small, metric, *inputs(small))
    before = peak()
    differentiate(case, metric, construct, tensors)
    memory = peak() - before
    took = processor_milliseconds(lambda: differentiate(case, metric, construct, tensors), 3 if case.slow else 7)
    return {"case": key, "metric": metric, "milliseconds": took, "megabytes": memory}


# --- the training step ------------------------------------------------------------------------------------------------

VOCABULARY, WIDTH, HEADS, LENGTH, BATCH = 48, 32, 2, 64, 32


class GatedLinearAttention(nn.Module):
    """A mixer small enough to train in seconds; `last` is the operator of the last call."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.project, self.out = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v, g = self.project(self.norm(x)).unflatten(-1, (4 * HEADS, -1)).chunk(4, -2)
        g = logsigmoid(g) / 16
        self.last = (q, k, g)
        total = g.cumsum(1)
        scores = torch.einsum("bihn,bjhn->bhij", q * total.exp(), k * (-total).exp()).tril() * q.shape[-1] ** -0.5
        return x + self.out(torch.einsum("bhij,bjhv->bihv", scores, v).flatten(-2))


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(VOCABULARY, WIDTH), nn.Linear(WIDTH, VOCABULARY)
        self.mixers = nn.ModuleList(GatedLinearAttention() for _ in range(2))
        hidden = [nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 4 * WIDTH), nn.GELU()) for _ in range(2)]
        self.hidden = nn.ModuleList(nn.Sequential(*block, nn.Linear(4 * WIDTH, WIDTH)) for block in hidden)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        for mixer, hidden in zip(self.mixers, self.hidden):
            x = mixer(x)
            x = x + hidden(x)
        return self.head(x)


def training_step(metric: str, rounds: int) -> dict[str, Any]:
    """Milliseconds of a step with and without the regulariser, made in turn."""
    torch.manual_seed(0)
    model = Model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    tokens = torch.randint(VOCABULARY, (BATCH, LENGTH))
    reg = ESSRegularizer(metric, atol=0.1 if metric == "soft" else None, positions=3)  # type: ignore[arg-type]

    def step(weight: float) -> None:
        optimizer.zero_grad()
        loss = cross_entropy(model(tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
        if weight:
            q, k, g = model.mixers[0].last
            loss = loss + weight * reg(ek.operators.gla(q, k, g))
        loss.backward()
        optimizer.step()

    times: dict[float, list[float]] = {0.0: [], 1e-3: []}
    for round_ in range(rounds + 2):
        for weight, mine in times.items():
            took = processor_milliseconds(lambda weight=weight: step(weight), 1)  # type: ignore[misc]
            if round_ >= 2:
                mine.append(took)
    plain, regularised = (statistics.median(mine) for mine in times.values())
    return {"case": "step", "metric": metric, "plain": plain, "milliseconds": regularised}


# --- what is printed --------------------------------------------------------------------------------------------------


def beside(found: float, asked: float | None, unit: str) -> str:
    if asked is None:
        return f"{found:7.0f} {unit}            "
    return f"{found:7.0f} {unit} ({'<=' if found <= asked else 'NOT <='} {asked:.0f})"


def show(row: dict[str, Any]) -> None:
    if row["case"] == "step":
        ratio = row["milliseconds"] / row["plain"]
        verdict = "<=" if ratio <= STEP_RATIO else "NOT <="
        print(f"{STEP}, {row['metric']}: {row['milliseconds']:.1f} ms, {ratio:.2f} times a plain one", end=" ")
        print(f"of {row['plain']:.1f} ms ({verdict} {STEP_RATIO})", flush=True)
        return
    case = CASES[row["case"]]
    title = f"{case.title}, L = {case.length}, n = {case.state}"
    time_, memory = beside(row["milliseconds"], case.milliseconds, "ms"), beside(row["megabytes"], case.megabytes, "MB")
    print(f"{title:48s} {row['metric']:8s} {time_:24s} {memory}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="without the cases that take seconds, entropy only")
    parser.add_argument("--metric", nargs="+", choices=METRICS, default=None)
    parser.add_argument("--json", type=Path, help="write the figures to this file as well")
    parser.add_argument("--one", nargs=2, metavar=("CASE", "METRIC"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.one:
        key, metric = arguments.one
        row = training_step(metric, 30) if key == "step" else measure(key, metric)
        print(json.dumps(row))
        return
    rows = []
    for metric in arguments.metric or (["entropy"] if arguments.quick else list(METRICS)):
        for key in [*CASES, "step"]:
            if arguments.quick and key in CASES and CASES[key].slow:
                continue
            command = [sys.executable, __file__, "--one", key, metric]
            out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            rows.append(json.loads(out.splitlines()[-1]))
            show(rows[-1])
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
