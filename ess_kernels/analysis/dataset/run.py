"""The public function: a model and the files of many prompts, or files of activations, to a directory of results."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Collection, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn

from ess_kernels import environment
from ess_kernels.analysis.analyze import TOLERANCES, tolerances_of
from ess_kernels.analysis.measure import METRICS, check_metrics
from ess_kernels.analysis.selection import selected

from . import on_ray, optional, processes, prompts
from .inputs import PARQUET, Shard, find_files
from .models import MakeModel, Source
from .run_file import Run, check_writable, claim, clean, find_run
from .settings import MAX_TOKENS, Settings
from .shard import Analyst, Outcome, Trials, analyze_prompt

ENGINES = ("local", "ray")
GIVEN_UP = "its worker was killed again and again, or could not begin"


@dataclass(frozen=True)
class DatasetRun:
    """What has become of a run.

    Attributes:
        out: its directory, a Parquet data set.
        shards: how many there are.
        share: how many of them are this process's, which is all of them unless `RANK` or a Slurm array divides them.
        there: how many parts of these were there before.
        prompts: how many prompts were analysed now.
        problems: how many of these have a row with a problem.
        first_problem: one of these problems, in words.
        failed: by shard, why it has no part. To run again does these alone.
        plan: of a dry run: what the first prompt would take. None otherwise.
    """

    out: Path
    shards: int
    share: int
    there: int
    prompts: int = 0
    problems: int = 0
    first_problem: str | None = None
    failed: Mapping[str, str] = field(default_factory=dict)
    plan: Any = None

    def __str__(self) -> str:
        done = self.share - self.there - len(self.failed)
        whose = "" if self.share == self.shards else f" of {self.shards}, this process's share"
        text = f"{self.share} shards{whose}: {self.there} done before"
        if self.plan is not None:
            return f"{text}, {self.share - self.there} to do with {self.prompts} prompts"
        text += f", {done} done now, {len(self.failed)} failed; {self.prompts} prompts"
        return f"{text}, {self.problems} with a problem" + (f": {self.first_problem}" if self.problems else "")


def analyze_dataset(
    model: nn.Module | MakeModel | None,
    inputs: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    tokenizer: Any = None,
    id_column: str = "id",
    text_column: str = "text",
    max_tokens: int = MAX_TOKENS,
    max_length: int | None = None,
    atol: float | Sequence[float] = TOLERANCES,
    positions: Sequence[int] | None = None,
    layers: str | Sequence[str] | None = None,
    metrics: Collection[str] = METRICS,
    backend: str = "auto",
    workers: int | None = None,
    engine: str = "local",
    num_gpus: float = 0,
    restart: bool = False,
    dry_run: bool = False,
    report: Callable[[Outcome], None] | None = None,
) -> DatasetRun:
    """Measure the ESS of every mixer of a model on many prompts, a file of prompts at a time.

    Every input file, a shard, becomes one Parquet file in `out`, its part, which is there whole or not at all. To go on
    after whatever ended a run, run it again: shards whose part is there are skipped. What a prompt, a layer or a head
    has wrong with it is in a row of the part; a shard that cannot be read or written is left out, and in `failed`.
    The columns are described in `docs/many_prompts.md` and `ess_kernels.analysis.dataset.columns`.

    Args:
        model: a torch module, or a function without arguments that makes one, or makes a pair of a module and its
            tokenizer. Other processes need the function, and must be able to import it. None for activations.
        inputs: names of files, or patterns with `*`: Parquet files with a column of ids (integers or texts) and one of
            prompts (texts, or lists of the tokens' numbers); or safetensors files of activations, with tensors
            `layer/argument` and metadata `{layer: constructor of ess_kernels.operators}`.
        out: the run's directory, new or empty or of this run.
        tokenizer: a function of a text that gives the tokens' numbers, or a mapping that has them as `input_ids`. Not
            where `model` makes one as well.
        id_column, text_column: the columns.
        max_tokens: a prompt with more is not analysed, and its row says so.
        max_length: take the first tokens of each prompt only.
        atol, layers, metrics, backend: as for `ess_kernels.analyze`.
        positions: integers from 1 on; a prompt that is too short for some of them has the others. None: all.
        workers: how many processes, or Ray actors. None: this process alone, or one actor.
        engine: `"local"`, or `"ray"` for the processes of a Ray cluster.
        num_gpus: how many GPUs a Ray actor has.
        restart: delete what an earlier run has left in `out`.
        dry_run: look at everything, and say what the first prompt would take; write nothing.
        report: called with what has become of each shard.

    With `RANK` and `WORLD_SIZE` in the environment (torchrun), or `SLURM_ARRAY_TASK_ID`, every process does its share
    of the shards.

    Returns:
        a `DatasetRun`.

    Raises:
        TypeError, ValueError: an argument is wrong, a column is missing, or `out` holds another run; before any work.
        OSError: `out` cannot be written to.
        ImportError: pyarrow, safetensors or Ray is not installed.
        RuntimeError: a worker could not make the model.
    """
    optional.pyarrow()
    paths = find_files(inputs)
    settings = Settings(
        id_column=id_column,
        text_column=text_column,
        max_tokens=_at_least("max_tokens", max_tokens, 2),
        max_length=None if max_length is None else _at_least("max_length", max_length, 2),
        atol=tolerances_of(atol),
        positions=None if positions is None else tuple(_at_least("positions", i, 1) for i in positions),
        layers=None if layers is None else (layers,) if isinstance(layers, str) else tuple(layers),
        metrics=_metrics(metrics),
        backend=backend,
    )
    if engine not in ENGINES:
        raise ValueError(f"engine: expected one of {', '.join(ENGINES)}, got {engine!r}")
    workers = None if workers is None else _at_least("workers", workers, 1)
    source = Source(model, tokenizer)
    _check_engine(engine, workers, source)
    index, count = environment.process_share()
    if restart and count > 1:
        raise ValueError("restart: expected one process, got a share of the shards: another one may have begun already")
    out = Path(os.path.abspath(out))
    check_writable(out)
    if workers is None and engine == "local" and (place := environment.local_rank()) is not None:
        processes.use_gpu(place)
    id_kind = _check_inputs(paths, source, settings)
    run = find_run(out, replace(settings, model=source.identity()), paths, restart)
    share = [shard for shard in run.shards if shard.number % count == index]
    todo = [shard for shard in share if restart or not run.is_done(shard)]
    found = DatasetRun(out, len(run.shards), len(share), len(share) - len(todo))
    if dry_run:
        return _planned(found, run, todo, source)
    claim(run, restart)
    return _followed(found, run, todo, _analyse(run, id_kind, source, todo, engine, workers, num_gpus), report)


def _check_engine(engine: str, workers: int | None, source: Source) -> None:
    if engine == "ray":
        optional.ray()
    if workers is None and engine == "local":
        return
    if isinstance(source.given, nn.Module):
        raise ValueError("model: other processes need a function that makes the model, got a model")
    if engine == "local":
        try:
            pickle.dumps((source.make, source.tokenizer))
        except Exception as error:  # pickle raises anything
            raise TypeError(
                "model: other processes need a function and a tokenizer that they can import, as those of a module; "
                f"{error}"
            ) from error


def _check_inputs(paths: list[Path], source: Source, settings: Settings) -> str:
    """`"integer"` or `"text"`: what all ids are."""
    if paths[0].suffix != PARQUET:
        optional.safe_open()
        if source.given is not None:
            raise ValueError(f"model: expected None, for {paths[0].suffix} files hold activations, got a model")
        return "text"
    if source.given is None:
        raise ValueError(f"model: expected a model, or a function that makes one, for {PARQUET} files hold prompts")
    id_kind = prompts.check_columns(paths, settings)
    if callable(look := getattr(source.make, "check", None)):
        look(settings.layers, prompts.has_texts(paths, settings))
        return id_kind
    loaded = source.load()
    assert loaded is not None
    selected(settings.layers, loaded.model)
    if loaded.encode is None and (path := prompts.has_texts(paths, settings)):
        raise ValueError(f"tokenizer: expected one, for the prompts of {path} are texts")
    return id_kind


def _analyse(
    run: Run,
    id_kind: str,
    source: Source,
    todo: list[Shard],
    engine: str,
    workers: int | None,
    num_gpus: float,
) -> Generator[Outcome, None, None]:
    """What becomes of the shards, one after the other."""
    if not todo:
        return
    if engine == "local" and workers is None:
        analyst = Analyst(run, id_kind, source.load())
        yield from map(analyst, todo)
        return
    source.forget()  # workers have models of their own
    order = processes.Order(run, id_kind, source.make, source.tokenizer)
    if engine == "ray":
        yield from on_ray.analyse_on_ray(order, todo, workers or 1, num_gpus)
    else:
        yield from processes.analyse_in_processes(order, todo, workers or 1)


def _followed(
    found: DatasetRun,
    run: Run,
    todo: list[Shard],
    outcomes: Generator[Outcome, None, None],
    report: Callable[[Outcome], None] | None,
) -> DatasetRun:
    """The run's end, with everything counted as it comes."""
    failed: dict[str, str] = {}
    told = set()
    try:
        for outcome in outcomes:
            told.add(outcome.shard.number)
            if outcome.reason is not None:
                failed[outcome.shard.name] = outcome.reason
            found = replace(
                found,
                prompts=found.prompts + outcome.prompts,
                problems=found.problems + outcome.problems,
                first_problem=found.first_problem or outcome.first_problem,
            )
            if report is not None:
                report(outcome)
    finally:
        outcomes.close()  # ends the workers
        clean(run.out)
    for shard in todo:
        if shard.number not in told and not run.is_done(shard):
            outcome = Outcome(shard, False, reason=GIVEN_UP)
            failed[shard.name] = GIVEN_UP
            if report is not None:
                report(outcome)
    return replace(found, failed=failed)


def _planned(found: DatasetRun, run: Run, todo: list[Shard], source: Source) -> DatasetRun:
    """What is left to do, and what the first prompt that can be analysed would take."""
    if source.given is None:
        return replace(found, prompts=len(todo), plan="")
    left = sum(prompts.count(shard.path) for shard in todo)
    loaded = source.load()
    assert loaded is not None
    for shard in todo:
        try:
            for prompt in prompts.read(shard.path, run.settings):
                ids = prompts.tokens_of(prompt, loaded, run.settings)
                if not isinstance(ids, str):
                    plan = analyze_prompt(ids, loaded, run.settings, Trials(), dry_run=True)
                    return replace(found, prompts=left, plan=plan)
        except (OSError, ValueError):  # it fails when its turn comes, and says why
            continue
    return replace(found, prompts=left, plan="")


def _metrics(metrics: Collection[str]) -> tuple[str, ...]:
    check_metrics(metrics)
    return tuple(metric for metric in METRICS if metric in metrics)


def _at_least(name: str, number: Any, least: int) -> int:
    if isinstance(number, bool) or not isinstance(number, int):
        raise TypeError(f"{name}: expected an integer, got {number!r}")
    if number < least:
        raise ValueError(f"{name}: expected at least {least}, got {number}")
    return number
