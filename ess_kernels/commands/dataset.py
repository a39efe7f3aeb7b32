"""`ess-kernels analyze --inputs`: many prompts, or files of activations, to a directory of results."""

from __future__ import annotations

import argparse
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from ess_kernels import _requirements
from ess_kernels._printable import printable
from ess_kernels.commands.analyze import check_numbers
from ess_kernels.commands.errors import UserError
from ess_kernels.commands.extras import require
from ess_kernels.commands.interrupts import Interrupts
from ess_kernels.commands.making import DEMO, CheckpointModel, EmbeddedModel
from ess_kernels.commands.terminal import note, say

if TYPE_CHECKING:
    from ess_kernels.analysis.dataset.run import DatasetRun
    from ess_kernels.analysis.dataset.shard import Outcome

INCOMPLETE = 3  # the exit code where shards have no part
# options that `analyze --inputs` alone has, and those that it does not have
OWN = ("out", "id_column", "text_column", "max_tokens", "workers", "engine", "restart")
OTHERS = ("html", "json", "parquet", "plot", "delimiter")


def check_unused(options: argparse.Namespace) -> None:
    """`UserError` for options that only `--inputs` has."""
    for option in _given(options, OWN):
        raise UserError(f"{option}: expected --inputs beside it")


def run(options: argparse.Namespace) -> int:
    """Everything that can be refused is refused before the work begins."""
    if problem := _requirements.problem():
        raise UserError(problem)
    for option in _given(options, OTHERS):
        raise UserError(f"{option}: expected one text, got --inputs")
    if options.out is None:
        raise UserError("--inputs: expected --out beside it, the directory for results")
    for module, purpose in (("pyarrow", "reads and writes Parquet files"), ("safetensors", "reads tensors")):
        require(module, purpose, "'ess-kernels[data]'")
    check_numbers(options)
    with Interrupts() as interrupts, _quiet(options):
        found = _analyzed(options)
        interrupts.check()
    say(found)
    if options.dry_run:
        if found.plan:
            say(found.plan)
        return 0
    if found.failed:
        note(f"{len(found.failed)} shards have no result; the same command does these alone")
        return INCOMPLETE
    return 0


def _quiet(options: argparse.Namespace) -> AbstractContextManager[None]:
    """Keeps transformers silent and without a connection, here and in processes that are started meanwhile."""
    if options.checkpoint in (None, DEMO):
        return nullcontext()
    require("transformers", "loads models")
    from ess_kernels.commands.offline import hugging_face

    return hugging_face(options.download)


def _given(options: argparse.Namespace, names: tuple[str, ...]) -> list[str]:
    return [_option(name) for name in names if getattr(options, name) is not None]


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _analyzed(options: argparse.Namespace) -> DatasetRun:
    from ess_kernels.analysis.dataset.processes import WorkerFailed
    from ess_kernels.analysis.dataset.run import analyze_dataset
    from ess_kernels.analysis.dataset.settings import MAX_TOKENS

    given = {name: value for name in OWN if (value := getattr(options, name)) is not None and name != "out"}
    try:
        return analyze_dataset(
            _model(options, given.get("max_tokens", MAX_TOKENS)),
            options.inputs,
            options.out,
            max_length=options.max_length,
            atol=options.atol,
            positions=options.positions,
            layers=options.layers,
            metrics=tuple(options.metrics),
            num_gpus=1 if options.device == "cuda" else 0,
            dry_run=options.dry_run,
            report=_report,
            **given,
        )
    except (TypeError, ValueError, ImportError, WorkerFailed) as error:
        raise UserError(_in_options(str(error), options)) from error
    except OSError as error:
        raise UserError(f"--out {options.out}: {error.strerror or error}") from error


def _model(options: argparse.Namespace, most_tokens: int) -> Any:
    """A function that makes the model, after a look whether it can be made; None where there is none."""
    if options.checkpoint is None:
        return None
    if options.checkpoint == DEMO:
        return EmbeddedModel(options.device)
    return CheckpointModel(
        options.checkpoint,
        options.dtype,
        options.device,
        options.attention,
        options.download,
        options.trust_remote_code,
        most_tokens if options.max_length is None else min(most_tokens, options.max_length),
    )


def _in_options(message: str, options: argparse.Namespace) -> str:
    """An error's message, with the option's name in the place of the argument's."""
    name, colon, rest = message.partition(": ")
    if name == "model":
        return f"PATH_OR_NAME{colon}{rest}"
    return f"{_option(name)}{colon}{rest}" if hasattr(options, name) else message


def _report(outcome: Outcome) -> None:
    name = printable(outcome.shard.name)
    if outcome.reason is not None:
        note(f"error: {name}: {outcome.reason}")
    elif outcome.prompts:
        problems = f", {outcome.problems} with a problem" if outcome.problems else ""
        say(f"{name}: {outcome.prompts} prompts{problems}, {outcome.seconds:.1f} s")
    else:
        say(f"{name}: no prompts, or done by another process")
