"""Recurrences whose tokens are spread over processes: what each of them does and sends, by a model, and measured.

    python bench/distributed.py                        # the model's table for 8 to 512 processes; nothing is measured
    python bench/distributed.py --processes 1 2 4      # measured on this machine's CPU, that many processes with Gloo
    torchrun --nproc-per-node 8 bench/distributed.py --measure --backend nccl --length 1048576 --heads 64 --state 128

The model counts floating-point operations, messages and bytes, and divides by rates that are assumptions, printed with
the table. A measurement checks counts against those of one process (`--check`, where one can hold the sequence) and
prints a line of JSON for each rank: seconds of `sequence_parallel`, of counts and of entropies, and the most memory.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

# assumptions of the model: operations a second in recurrences as `bench/gpu_model.py` has them for an H100 in float64,
# and bytes a second and seconds a message between processes
FLOPS = 14e12
BYTES = 50e9
LATENCY = 20e-6


@dataclass(frozen=True)
class Share:
    """What one process does for its slice.

    Attributes:
        tokens: in its slice.
        summary_flops: of `Phi` and both roots.
        count_flops: of one tolerance at all of its positions.
        messages: that it sends, of both directions of a scan.
        sent: bytes of these messages.
        gathered: bytes that one gathering brings to it instead.
    """

    tokens: int
    summary_flops: float
    count_flops: float
    messages: int
    sent: float
    gathered: float


def share(processes: int, length: int, heads: int, n: int, diagonal: bool) -> Share:
    """The share of one of several processes of a recurrence with `n` states.

    A QR decomposition of m x n takes `2 n^2 (m - n / 3)`: one for `4 n` tokens (diagonal) or a block, and one of `2n x
    n` to join two of these, in both directions. A count takes `28 n^2` a token, three times that with transitions that
    are matrices.
    """
    tokens = length // processes
    qr = lambda m: 2 * n**2 * (m - n / 3)  # noqa: E731
    c = max(64, 4 * n) if diagonal else 64
    blocks = tokens / c
    summary = 2 * blocks * ((qr(c) if c > n else 0) + qr(2 * n))
    summary += 0 if diagonal else blocks * (4 * n**3 + 2 * 4 * n**3 + 6 * n**2 * c)
    numbers = (n + n**2 + 3 * n if diagonal else 2 * n**2 + 3) * heads
    messages = 2 * (math.ceil(math.log2(processes)) + 1) if processes > 1 else 0
    count = (28 if diagonal else 84) * n**2 * tokens
    return Share(tokens, heads * summary, heads * count, messages, 8.0 * numbers * messages, 16.0 * numbers * processes)


def table(length: int, heads: int, n: int) -> str:
    """The model for 8 to 512 processes, in Markdown."""
    head = ["processes", "tokens each", "own summary, ms", "counts, ms", "messages sent", "MB sent", "scan, ms"]
    head.append("one gathering, MB (ms)")
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for processes in (8, 16, 64, 128, 512):
        both = [share(processes, length, heads, n, diagonal) for diagonal in (True, False)]

        def pair(of, form: str, both=both) -> str:
            return " / ".join(form.format(of(one)) for one in both)

        lines.append(
            "| "
            + " | ".join(
                [
                    str(processes),
                    str(both[0].tokens),
                    pair(lambda x: 1e3 * x.summary_flops / FLOPS, "{:.1f}"),
                    pair(lambda x: 1e3 * x.count_flops / FLOPS, "{:.1f}"),
                    str(both[0].messages),
                    pair(lambda x: x.sent / 1e6, "{:.0f}"),
                    # both directions at once
                    pair(lambda x: 1e3 * (x.sent / 2 / BYTES + x.messages / 2 * LATENCY), "{:.1f}"),
                    pair(lambda x: x.gathered / 1e6, "{:.0f}")
                    + " ("
                    + pair(lambda x: 1e3 * x.gathered / BYTES, "{:.0f}")
                    + ")",
                ]
            )
            + " |"
        )
    return "\n".join(lines)


# --- measured ---------------------------------------------------------------------------------------------------------


def memory_peak() -> int:
    """The most resident bytes that this process has had."""
    return 1024 * int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])  # type: ignore[index]


def measure(options: argparse.Namespace) -> None:
    """One process of a group; torchrun, or `launch`, has set its environment."""
    import torch
    import torch.distributed as dist

    import ess_kernels as ek

    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    device = torch.device("cpu")
    if options.backend == "nccl":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(device)
    else:
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))
    dist.init_process_group(options.backend)
    edges = [options.length * r // size for r in range(size + 1)]

    def slice_of(start: int, stop: int):
        """Tokens made by blocks of their own seeds, so that any cut has the same sequence."""
        block, pieces = 256, []
        for number in range(start // block, -(-stop // block)):
            generator = torch.Generator().manual_seed(number)
            shape = (3, 1, block, options.heads, options.state)
            first = max(start - number * block, 0)
            pieces.append(
                torch.randn(shape, generator=generator, dtype=torch.float64)[:, :, first : stop - number * block]
            )
        q, k, g = torch.cat(pieces, 2).to(device)
        if options.matrices:
            unit = torch.nn.functional.normalize(k, dim=-1)
            return ek.operators.delta_rule(q, unit, beta=torch.sigmoid(g[..., 0]))
        return ek.operators.gla(q, k, torch.nn.functional.logsigmoid(g) / 16)

    def timed(call):
        seconds = []
        for _ in range(options.repeats):
            dist.barrier()
            begin = time.perf_counter()
            found = call()
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - begin)
        return found, round(statistics.median(seconds), 4)

    small = ek.operators.gla(*(x[:, :64] for x in (slice_of(0, 64).q,) * 2), slice_of(0, 64).g[:, :64])
    ek.tolerance_ess(small)  # the library is loaded, the kernels are compiled
    local = slice_of(edges[rank], edges[rank + 1])
    before = memory_peak()
    op, making = timed(lambda: ek.distributed.sequence_parallel(local))
    counts, counting = timed(lambda: ek.tolerance_ess(op, backend=options.engine))
    _, entropies = timed(lambda: ek.entropy_ess(op, backend=options.engine)) if options.entropy else (None, None)
    found = {
        "processes": size,
        "rank": rank,
        "tokens": local.length,
        "sequence_parallel_s": making,
        "counts_s": counting,
        "entropy_s": entropies,
        "inputs_and_program_MB": round(before / 2**20, 1),
        "more_at_the_peak_MB": round((memory_peak() - before) / 2**20, 1),
    }
    if options.check:
        whole = ek.tolerance_ess(slice_of(0, options.length), backend=options.engine)
        found["equal"] = bool(torch.equal(counts, whole[..., op.positions - 1]))
    print(json.dumps(found), flush=True)
    dist.destroy_process_group()


def launch(options: argparse.Namespace) -> None:
    """Runs of several numbers of processes on this machine, with Gloo, one after the other."""
    for processes in options.processes:
        with tempfile.TemporaryDirectory() as folder:
            running = []
            for rank in range(processes):
                environment = {
                    **os.environ,
                    "RANK": str(rank),
                    "WORLD_SIZE": str(processes),
                    "MASTER_ADDR": "127.0.0.1",
                    "MASTER_PORT": str(20000 + os.getpid() % 20000),
                    "OMP_NUM_THREADS": "1",
                }
                command = [sys.executable, __file__, "--measure", *sys.argv[1:]]
                out = open(Path(folder) / str(rank), "w")  # noqa: SIM115
                running.append(subprocess.Popen(command, env=environment, stdout=out))
            for rank, process in enumerate(running):
                if process.wait() != 0:
                    raise SystemExit(f"rank {rank} of {processes} has failed")
                print((Path(folder) / str(rank)).read_text().strip(), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, nargs="+", help="measure with so many processes on this machine")
    parser.add_argument("--measure", action="store_true", help="be one process of a group that torchrun has started")
    parser.add_argument("--backend", choices=("gloo", "nccl"), default="gloo")
    parser.add_argument("--engine", default="auto", help="backend of the metrics")
    parser.add_argument("--length", type=int, help="of the whole sequence: 2^20 in the model, 4096 measured")
    parser.add_argument("--heads", type=int, help="64 in the model, 1 measured")
    parser.add_argument("--state", type=int, help="128 in the model, 64 measured")
    parser.add_argument("--matrices", action="store_true", help="a delta rule in place of GLA")
    parser.add_argument("--entropy", action="store_true")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    modelled = not (options.measure or options.processes)
    for name, model, measured in (("length", 2**20, 4096), ("heads", 64, 1), ("state", 128, 64)):
        if getattr(options, name) is None:
            setattr(options, name, model if modelled else measured)
    if options.measure:
        measure(options)
    elif options.processes:
        launch(options)
    else:
        print(
            f"Computed, not measured: L = {options.length}, {options.heads} heads, {options.state} states, diagonal / "
            f"matrix transitions; {FLOPS:.0e} operations and {BYTES:.0e} bytes a second, {LATENCY:.0e} s a message.\n"
        )
        print(table(options.length, options.heads, options.state))
        print("\n" + json.dumps(asdict(share(512, options.length, options.heads, options.state, True))))


if __name__ == "__main__":
    main()
