"""Runs of an experiment, one JSON line each, in a file that can be added to: a run that is there is not done again."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"
Run = dict[str, Any]


def parser_of(description: str | None) -> argparse.ArgumentParser:
    """The arguments that all experiments take."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("small", "gpu"), default="small", help="small: two CPU cores; gpu: larger")
    parser.add_argument("--seeds", type=int, help="seeds 0 to this number minus one; default: the experiment's own")
    parser.add_argument("--minutes", type=float, default=30.0, help="no run is begun after this time")
    parser.add_argument("--quick", action="store_true", help="a smoke test of seconds, written to a temporary folder")
    parser.add_argument("--report", action="store_true", help="run nothing: table and figure of what is there")
    parser.add_argument("--out", type=Path, help="folder of the results; default: results/ or results/gpu/")
    return parser


def prepare(options: argparse.Namespace) -> tuple[Path, torch.device]:
    """The folder of the results, made if need be, and where to compute."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    folder = options.out or (RESULTS if options.size == "small" else RESULTS / "gpu")
    if options.quick and options.out is None:
        folder = Path(tempfile.mkdtemp(prefix="paper_"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder, torch.device("cuda" if options.size == "gpu" and torch.cuda.is_available() else "cpu")


def read(path: Path) -> list[Run]:
    """The runs of a file, none if there is no such file."""
    return [json.loads(line) for line in path.read_text().splitlines() if line] if path.exists() else []


def run_missing(path: Path, wanted: Iterable[Run], do: Callable[[Run], Run], minutes: float) -> list[Run]:
    """Does what is wanted and not yet in the file, in order, until the time is over; all runs that are wanted and done.

    Args:
        path: a file of JSON lines.
        wanted: settings, plain values. Two runs are the same if all their settings are.
        do: from the settings of a run to what was found, plain values under other names.
        minutes: after this time no run is begun.
    """
    begin = time.monotonic()
    wanted = list(wanted)
    done = {key_of(run, wanted[0]): run for run in read(path) if wanted and wanted[0].keys() <= run.keys()}
    for number, settings in enumerate(wanted):
        if key_of(settings, settings) in done:
            continue
        if time.monotonic() - begin > 60 * minutes:
            break
        cpu = time.process_time()
        run = settings | do(settings) | {"cpu_seconds": round(time.process_time() - cpu, 1)}
        with path.open("a") as file:
            file.write(json.dumps(rounded(run)) + "\n")
        done[key_of(settings, settings)] = rounded(run)
        shown = " ".join(f"{name}={value}" for name, value in run.items() if not isinstance(value, (list, dict)))
        print(f"[{number + 1}/{len(wanted)}] {shown}", flush=True)
    return [done[key] for settings in wanted if (key := key_of(settings, settings)) in done]


@contextlib.contextmanager
def written_to(path: Path) -> Iterator[None]:
    """What is printed inside goes to a file as well: the tables of a report."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        yield
    path.write_text(text.getvalue().lstrip())
    print(text.getvalue())


def key_of(run: Run, settings: Run) -> str:
    return json.dumps({name: run[name] for name in settings}, sort_keys=True)


def rounded(value: Any) -> Any:
    """Five significant digits: more say nothing here and make the files long."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, list):
        return [rounded(x) for x in value]
    return {name: rounded(x) for name, x in value.items()} if isinstance(value, dict) else value
