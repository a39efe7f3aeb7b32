"""Many prompts on the embedded model: memory over the run, and what several processes gain.

    python bench/prompts.py                        # 1000 prompts of 256 tokens: memory, prompt by prompt
    python bench/prompts.py --scaling --shards 8 --rows 16   # the same prompts by one process and by two

Memory is the resident size of the one process, read after every shard; the first tenth warms up (imports, the first
calls of every kernel). Flat: all others are within 10 % of their mean. The time of workers has their start in it, a
few seconds that a long run does not feel, so each row also says how many shards a second there were after that.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

import pyarrow
import pyarrow.parquet
import torch

import ess_kernels as ek
from ess_kernels.commands.making import EmbeddedModel
from ess_kernels.demo import default_text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--shards", type=int, default=20)
    parser.add_argument("--rows", type=int, default=50, help="prompts a shard")
    parser.add_argument("--scaling", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="a toy size, for tests")
    options = parser.parse_args()
    if options.quick:
        options.tokens, options.shards, options.rows, options.rounds = 24, 4, 2, 1
    torch.set_num_threads(1)
    print(f"ess-kernels {ek.__version__}, torch {torch.__version__}, {os.cpu_count()} cores, one thread a process")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_prompts(folder / "in", options.shards, options.rows, options.tokens)
        if options.scaling:
            compare(folder, options.rounds)
        else:
            watch(folder)


def write_prompts(folder: Path, shards: int, rows: int, tokens: int) -> None:
    """Pieces of the demo's text, each beginning at another byte."""
    folder.mkdir()
    text = default_text().decode("ascii") * 2
    for shard in range(shards):
        first = [37 * (shard * rows + row) % (len(text) - tokens) for row in range(rows)]
        columns = {"id": list(range(shard * rows, (shard + 1) * rows)), "text": [text[i : i + tokens] for i in first]}
        pyarrow.parquet.write_table(pyarrow.table(columns), folder / f"{shard:05d}.parquet")


def watch(folder: Path) -> None:
    """Memory after every shard."""
    sizes: list[int] = []

    def report(outcome: object) -> None:
        sizes.append(resident())
        print(f"{len(sizes):3d} shards: {sizes[-1] / 2**20:.0f} MiB", flush=True)

    begin, processor = time.perf_counter(), time.process_time()
    found = ek.analyze_dataset(EmbeddedModel(), folder / "in" / "*.parquet", folder / "out", report=report)
    seconds, processor = time.perf_counter() - begin, time.process_time() - processor
    flat = sizes[max(1, len(sizes) // 10) - 1 :]
    mean = sum(flat) / len(flat)
    spread = max(abs(size - mean) for size in flat) / mean
    written = sum(path.stat().st_size for path in (folder / "out").glob("*.parquet"))
    assert found.problems == 0 and not found.failed, found
    print(f"{found.prompts} prompts in {seconds:.0f} s ({processor:.0f} s of a processor), {written / 2**20:.1f} MiB")
    sizes_text = f"{min(flat) / 2**20:.0f} to {max(flat) / 2**20:.0f} MiB"
    print(f"memory after the first tenth: {sizes_text}, +-{100 * spread:.1f} %")


def compare(folder: Path, rounds: int) -> None:
    """One worker against two, alternating; the parts must be equal."""
    parts, times = {}, {1: [], 2: []}
    for number in range(rounds):
        for workers in (1, 2):
            out = folder / f"{number}-{workers}"
            ends: list[float] = []
            begin = time.perf_counter()
            found = ek.analyze_dataset(
                EmbeddedModel(),
                folder / "in" / "*.parquet",
                out,
                workers=workers,
                report=lambda outcome, ends=ends: ends.append(time.perf_counter()),
            )
            seconds = time.perf_counter() - begin
            assert found.problems == 0 and not found.failed, found
            times[workers].append(seconds)
            parts[workers] = [path.read_bytes() for path in sorted(out.glob("*.parquet"))]
            # shards after each worker's first, whose time includes its start
            rate = (len(ends) - workers) / (ends[-1] - ends[workers - 1]) if len(ends) > workers else float("nan")
            print(f"{workers} workers: {seconds:.1f} s in all, {rate:.2f} shards a second once started", flush=True)
        assert parts[1] == parts[2], "parts differ"
    middle = {workers: sorted(of)[len(of) // 2] for workers, of in times.items()}
    print(f"parts equal; two workers are {middle[1] / middle[2]:.2f} times as fast as one, start included (medians)")


def resident() -> int:
    """Bytes of memory that this process has now."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main()
