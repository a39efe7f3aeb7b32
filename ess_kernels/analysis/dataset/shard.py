"""One shard in, one part out."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ess_kernels._whole_files import write_whole
from ess_kernels.analysis.analyze import analyze_batch
from ess_kernels.analysis.completeness import SHORT, find_mixing
from ess_kernels.analysis.forward import short_length
from ess_kernels.analysis.result import Analysis
from ess_kernels.capture import Mixing

from . import activations, columns, optional, prompts
from .inputs import SAFETENSORS, Shard
from .models import Loaded
from .run_file import RUN_KEY, SHARD_KEY, Run
from .settings import Settings

# Numbers in lists that are kept before they are written as a row group, 32 MB with positions and caps. A prompt with
# more is a row group by itself.
GROUP = 2**21


@dataclass(frozen=True)
class Outcome:
    """What has become of a shard.

    Attributes:
        shard: which one.
        done: whether its part is there now.
        prompts: how many prompts it has; 0 where its part was there before.
        problems: how many of them have a row with a problem.
        first_problem: of the first of these, in words.
        reason: why the part is not there; None if it is.
        seconds: that it took.
    """

    shard: Shard
    done: bool
    prompts: int = 0
    problems: int = 0
    first_problem: str | None = None
    reason: str | None = None
    seconds: float = 0.0


class Analyst:
    """Analyses shard after shard of a run, with one model.

    Args:
        run: the run.
        id_kind: `"integer"` or `"text"`.
        loaded: the model; None for activations.
    """

    def __init__(self, run: Run, id_kind: str, loaded: Loaded | None):
        self.run, self.id_kind, self.loaded = run, id_kind, loaded

    def __call__(self, shard: Shard) -> Outcome:
        """The shard's part, if it is not there. Whatever goes wrong is in the outcome, and leaves no part."""
        begin = time.perf_counter()
        try:
            if self.run.is_done(shard):  # by another process, meanwhile
                return Outcome(shard, True)
            tally = _Tally()
            write_whole(self.run.part(shard), lambda path: self._write(shard, path, tally), durable=True)
        except Exception as error:  # a file that cannot be read, a full disk, no memory
            seconds = time.perf_counter() - begin
            return Outcome(shard, False, reason=prompts.one_line(error), seconds=seconds)
        seconds = time.perf_counter() - begin
        return Outcome(shard, True, tally.prompts, tally.problems, tally.first_problem, seconds=seconds)

    def _write(self, shard: Shard, path: Path, tally: _Tally) -> None:
        arrow, parquet = optional.pyarrow()
        notes = {RUN_KEY: self.run.id.encode(), SHARD_KEY: shard.sha256.encode()}
        schema = columns.schema(self.id_kind, notes)
        with path.open("wb") as file, parquet.ParquetWriter(file, schema, compression="zstd") as writer:
            kept: list[Any] = []
            size = 0
            for table in self._tables(shard, schema, tally):
                kept.append(table)
                size += columns.number_of_values(table)
                if size >= GROUP:
                    writer.write_table(arrow.concat_tables(kept))
                    kept, size = [], 0
            if kept:
                writer.write_table(arrow.concat_tables(kept))

    def _tables(self, shard: Shard, schema: Any, tally: _Tally) -> Iterator[Any]:
        if shard.path.suffix == SAFETENSORS:
            return _tables_of_activations(shard, schema, self.run.settings, tally)
        assert self.loaded is not None
        return _tables_of_prompts(shard, schema, self.run.settings, self.loaded, tally)


@dataclass
class _Tally:
    """What is counted while a part is written."""

    prompts: int = 0
    problems: int = 0
    first_problem: str | None = None

    def count(self, problem: str | None) -> None:
        self.prompts += 1
        if problem is not None:
            self.problems += 1
            self.first_problem = self.first_problem or problem


def _tables_of_activations(shard: Shard, schema: Any, settings: Settings, tally: _Tally) -> Iterator[Any]:
    identity, layers = activations.read(shard.path, settings)
    about = {"shard": shard.name, "row": 0, "id": identity}
    first = None
    for layer in layers:
        if layer.result is None:
            assert layer.problem is not None
            first = first or layer.problem
            yield columns.problem_table(schema, layer.problem, layer.name, **about)
        else:
            for table in columns.layer_tables(schema, layer.result, length=layer.result.length, **about):
                first = first or first_problem(table)
                yield table
    tally.count(first)


def _tables_of_prompts(shard: Shard, schema: Any, settings: Settings, loaded: Loaded, tally: _Tally) -> Iterator[Any]:
    trials = Trials()
    for prompt in prompts.read(shard.path, settings):
        about: dict[str, Any] = {"shard": shard.name, "row": prompt.row, "id": prompt.id}
        ids = prompts.tokens_of(prompt, loaded, settings)
        if isinstance(ids, str):
            tally.count(ids)
            yield columns.problem_table(schema, ids, None, **about)
            continue
        about["length"] = len(ids)
        found = _found(ids, loaded, settings, trials)
        problems = [found] if isinstance(found, str) else list(found.skipped.values())
        if of_machine := next(filter(prompts.is_of_the_machine, problems), None):  # no part may depend on that
            raise RuntimeError(f"prompt {prompt.id!r} of {len(ids)} tokens: {of_machine}")
        if isinstance(found, str):
            tally.count(found)
            yield columns.problem_table(schema, found, None, **about)
            continue
        tables = list(_tables_of_analysis(found, schema, about))
        tally.count(next(filter(None, map(first_problem, tables)), None))
        yield from tables


def _found(ids: list[int], loaded: Loaded, settings: Settings, trials: Trials) -> Analysis | str:
    """The analysis of a prompt, or why there is none: no mixer, or a model that fails on its own input."""
    try:
        return analyze_prompt(ids, loaded, settings, trials)
    except Exception as error:  # a model raises anything
        return prompts.one_line(error)


def _tables_of_analysis(found: Analysis, schema: Any, about: Mapping[str, Any]) -> Iterator[Any]:
    for layer in found.layers.values():
        yield from columns.layer_tables(schema, layer, **about)
    for name, reason in found.skipped.items():
        if not reason.startswith(SHORT):  # whose state is a few tokens, in front of a mixer: nothing is missing
            yield columns.problem_table(schema, reason, name, **about)


def first_problem(table: Any) -> str | None:
    """The first problem in a table's rows; None where there is none."""
    column = table["problem"]
    return None if column.null_count == len(column) else next(filter(None, column.to_pylist()))


def analyze_prompt(ids: list[int], loaded: Loaded, settings: Settings, trials: Trials, dry_run: bool = False) -> Any:
    """`ess_kernels.analyze` of one prompt: an `Analysis`, or a `Plan`."""
    return analyze_batch(
        loaded.model,
        {"input_ids": torch.tensor([ids], device=loaded.device)},
        atol=settings.atol,
        positions=activations.places(settings.positions, len(ids)),
        layers=settings.layers,
        metrics=settings.metrics,
        backend=settings.backend,
        dry_run=dry_run,
        try_modules=trials,
        stream=io.StringIO(),  # no bar: several workers share a terminal
    )


class Trials:
    """Which modules of a model mix over time, found once in a shard for each number of tokens that is tried.

    It is asked of the shard's own prompts, so that a part depends on its shard alone.
    """

    def __init__(self) -> None:
        self._found: dict[int, tuple[Mixing, list[str]]] = {}

    def __call__(
        self, model: nn.Module, arguments: Mapping[str, Any], batch: int, length: int
    ) -> tuple[Mixing, list[str]]:
        key = short_length(model, length)
        if key not in self._found:
            self._found[key] = find_mixing(model, arguments, batch, length)
        return self._found[key]
