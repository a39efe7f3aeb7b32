"""Trains the demo's byte-level model on the standard library's own source, and writes its weights.

    OMP_NUM_THREADS=1 python bench/train_demo.py            # about ten minutes on one CPU core

The text is a fixed list of pure-Python modules (PSF licence) of the interpreter that runs this script, so it differs
slightly from one Python version to the next; its sha256 is printed and goes into the weights' metadata. Whole files
are held out. On the same text and the same machine the result depends on the seed alone; another CPU rounds
differently and ends a little elsewhere. `MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=4000000000` in the environment
makes glibc keep freed memory, which saves about a quarter of the time and changes no number.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import platform
import sysconfig
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from ess_kernels.demo.model import ByteLM

TRAINING_FILES = """
    _collections_abc _pydecimal _pyio _strptime argparse ast base64 bdb calendar cmd code codecs collections/__init__
    compileall configparser contextlib csv dataclasses datetime dis doctest enum fileinput fractions ftplib functools
    getopt gettext glob gzip hashlib html/parser http/client http/cookies http/server imaplib inspect ipaddress
    json/__init__ json/decoder json/encoder locale logging/__init__ logging/config logging/handlers lzma mailbox
    mimetypes modulefinder ntpath numbers optparse os pdb pickle pickletools pkgutil platform plistlib poplib
    posixpath pprint profile pstats pydoc queue random re/_compiler re/_parser runpy sched selectors shelve shlex shutil
    site smtplib socket socketserver ssl subprocess symtable tarfile tempfile threading timeit tokenize
    trace traceback tracemalloc turtle typing unittest/case unittest/loader unittest/mock urllib/parse urllib/request
    uuid warnings wave weakref webbrowser xml/dom/minidom xml/etree/ElementTree xmlrpc/client xmlrpc/server zipapp
    asyncio/base_events asyncio/events asyncio/futures asyncio/locks asyncio/queues asyncio/selector_events
    asyncio/streams asyncio/tasks asyncio/unix_events concurrent/futures/_base concurrent/futures/process
    email/_header_value_parser email/charset email/feedparser email/generator email/header email/message email/utils
    importlib/_bootstrap importlib/_bootstrap_external multiprocessing/connection multiprocessing/managers
    multiprocessing/pool multiprocessing/util wsgiref/handlers wsgiref/validate pydoc_data/topics
"""
HELD_OUT_FILES = "bisect copy difflib filecmp heapq http/cookiejar statistics textwrap tomllib/_parser"

# (steps, sequences in a step, bytes in a sequence): short sequences are cheap; the last stage teaches long positions.
STAGES = ((2400, 8, 128), (1100, 8, 256), (200, 2, 1024))
PEAK_RATE = 4e-3
WARM_UP = 100
WINDOW = 1024  # bytes of context at most when held-out text is scored


def read(names: str) -> list[bytes]:
    """The modules' source, one entry a file. A module that this Python does not have is an error, not a gap."""
    library = Path(sysconfig.get_path("stdlib"))
    return [(library / f"{name}.py").read_bytes() for name in names.split()]


def counted(text: list[bytes], order: int) -> np.ndarray:
    """How often each byte follows each context of `order` bytes: float64 `[256, ..., 256]`, `order + 1` axes."""
    total = np.zeros(256 ** (order + 1))
    for part in text:
        data = np.frombuffer(part, np.uint8).astype(np.int64)
        code = sum(data[k : len(data) - order + k] * 256 ** (order - k) for k in range(order + 1))
        total += np.bincount(code, minlength=total.size)
    return total.reshape((256,) * (order + 1))


def order_two_bits(counts: list[np.ndarray], strength: tuple[float, ...], text: list[bytes]) -> float:
    """Mean bits per byte of the order-2 model; a file's first two bytes have no context and are not scored.

    The probability of a byte after k bytes is its count there plus `strength[k]` times its probability after k - 1
    bytes, over the sum: order 0 leans on the uniform distribution, order 1 on order 0, order 2 on order 1.
    """
    data = [np.frombuffer(part, np.uint8) for part in text]
    index = tuple(np.concatenate([d[k : len(d) - 2 + k] for d in data]) for k in range(3))
    chance = np.full(len(index[0]), 1 / 256)
    for order, count in enumerate(counts):
        seen = index[2 - order :]
        chance = (count[seen] + strength[order] * chance) / (count.sum(-1)[seen[:-1]] + strength[order])
    return float(-np.log2(chance).mean())


def order_two_baseline(train: list[bytes], held_out: list[bytes]) -> float:
    """Held-out bits per byte, with the smoothing that suits the last tenth of the training files best."""
    cut = len(train) * 9 // 10
    counts = [counted(train[:cut], order) for order in range(3)]
    grid = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
    choices = [(1.0, first, second) for first in grid for second in grid]
    best = min(choices, key=lambda choice: order_two_bits(counts, choice, train[cut:]))
    print(f"order-2 smoothing {best}", flush=True)
    return order_two_bits([counted(train, order) for order in range(3)], best, held_out)


@torch.no_grad()
def model_bits(model: ByteLM, text: list[bytes]) -> float:
    """Mean bits per byte, every byte but a file's first two; windows of `WINDOW` bytes, none sees the one before."""
    total, count = 0.0, 0
    for part in text:
        data = torch.frombuffer(bytearray(part), dtype=torch.uint8).long()
        for start in range(1, len(data) - 1, WINDOW):
            bits = model.losses(data[None, start - 1 : start + WINDOW])[0, int(start == 1) :]
            total, count = total + float(bits.double().sum()), count + len(bits)
    return total / count


def batch(data: Tensor, sequences: int, length: int, generator: torch.Generator) -> Tensor:
    start = torch.randint(len(data) - length, (sequences, 1), generator=generator)
    return data[start + torch.arange(length + 1)].long()


def train(model: ByteLM, text: bytes, stages: tuple[tuple[int, int, int], ...], seed: int) -> None:
    data = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    generator = torch.Generator().manual_seed(seed)
    decayed = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}],
        lr=PEAK_RATE,
        betas=(0.9, 0.95),
        fused=True,
    )
    steps = sum(stage[0] for stage in stages)
    step, mean, begin = 0, math.nan, time.perf_counter()
    for stage_steps, sequences, length in stages:
        for _ in range(stage_steps):
            rate = PEAK_RATE * min(1, (step + 1) / WARM_UP) * (0.02 + 0.98 * (1 + math.cos(math.pi * step / steps)) / 2)
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.zero_grad()
            loss = model.loss(batch(data, sequences, length, generator))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            mean = loss.item() if math.isnan(mean) else 0.98 * mean + 0.02 * loss.item()
            step += 1
            if step % 100 == 0:
                print(f"step {step}/{steps}  {mean:.3f} bits per byte  {time.perf_counter() - begin:.0f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(__file__).parents[1] / "ess_kernels" / "demo" / "weights.safetensors"
    parser.add_argument("--out", type=Path, default=default, help="where to write the weights")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="a hundredth of the steps, to try the script")
    options = parser.parse_args()

    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(options.seed)
    stages = tuple((max(1, s // 100), b, n) for s, b, n in STAGES) if options.quick else STAGES

    training, held_out = read(TRAINING_FILES), read(HELD_OUT_FILES)
    metadata = {
        "seed": str(options.seed),
        "stages": "; ".join(f"{s} steps of {b} x {n} bytes" for s, b, n in stages),
        "text": f"source of {len(training)} standard library modules of Python {platform.python_version()} (PSF)",
        "text_bytes": str(sum(map(len, training))),
        "text_sha256": hashlib.sha256(b"".join(training)).hexdigest(),
        "held_out": HELD_OUT_FILES,
        "held_out_bytes": str(sum(map(len, held_out))),
        "held_out_sha256": hashlib.sha256(b"".join(held_out)).hexdigest(),
        "torch": torch.__version__,
    }
    metadata["order2_bits_per_byte"] = f"{order_two_baseline(training, held_out):.4f}"

    model = ByteLM()
    begin = time.perf_counter()
    train(model, b"\n".join(training), stages, options.seed)
    metadata["training_seconds"] = f"{time.perf_counter() - begin:.0f}"

    weights = {name: value.half().contiguous() for name, value in model.state_dict().items()}
    model.load_state_dict(weights)  # score what is shipped: the rounded weights
    metadata["held_out_bits_per_byte"] = f"{model_bits(model.eval(), held_out):.4f}"
    save_file(weights, options.out, metadata)
    options.out.chmod(0o644)  # safetensors leaves it readable by its owner alone
    for name, value in metadata.items():
        print(f"{name}: {value}")
    print(f"wrote {options.out} ({options.out.stat().st_size} bytes)")


if __name__ == "__main__":
    main()
