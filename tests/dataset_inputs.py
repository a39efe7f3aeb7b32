"""Small shards of prompts and a small model, for tests of runs over many prompts. Other processes import it as well."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import torch

from ess_kernels.demo.model import ByteLM, Config

LETTERS = "the state of a mixer is what it keeps of a text; "
POISON = "kill"  # a prompt of which `poisoned_model` dies, as of the system's memory killer


def bytes_of(text: str) -> list[int]:
    return list(text.encode())


def small_model() -> tuple[ByteLM, object]:
    """A random model of two layers, and its tokenizer."""
    torch.manual_seed(0)
    model = ByteLM(Config(width=16, heads=2, state=4, hidden=16, layers=("gla", "attention")))
    return model.eval().requires_grad_(False), bytes_of


def poisoned_model() -> tuple[ByteLM, object]:
    """The same, with a tokenizer that kills its process when it is given `POISON`."""

    def tokenizer(text: str) -> list[int]:
        if text == POISON:
            os.kill(os.getpid(), signal.SIGKILL)
        return bytes_of(text)

    return small_model()[0], tokenizer


def write_shard(path: Path, texts: list, ids: list | None = None) -> Path:
    import pyarrow
    import pyarrow.parquet

    ids = [f"{path.stem}-{row}" for row in range(len(texts))] if ids is None else ids
    pyarrow.parquet.write_table(pyarrow.table({"id": ids, "text": texts}), path)
    return path


def write_shards(folder: Path, shards: int = 3, rows: int = 2, length: int = 12) -> str:
    """Shards of prompts that differ; the pattern of their names."""
    folder.mkdir(parents=True, exist_ok=True)
    text = LETTERS * (2 + (shards * rows + length) // len(LETTERS))
    for shard in range(shards):
        first = shard * rows
        write_shard(folder / f"{shard:03d}.parquet", [text[i : i + length] for i in range(first, first + rows)])
    return str(folder / "*.parquet")


def parts_of(out: Path) -> dict[str, bytes]:
    """The bytes of every file of a run but `_run.json`, which says when its inputs were changed; hidden ones too."""
    return {path.name: path.read_bytes() for path in out.iterdir() if path.name != "_run.json"}
