"""`ess-kernels analyze`: the ESS of every mixer of a checkpoint on a text."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ess_kernels import _requirements, environment
from ess_kernels._printable import printable
from ess_kernels._text_table import text_table
from ess_kernels.commands.errors import UserError
from ess_kernels.commands.extras import require
from ess_kernels.commands.files import check_distinct, check_writable, picture, write
from ess_kernels.commands.interrupts import Interrupts
from ess_kernels.commands.making import DEMO
from ess_kernels.commands.terminal import say
from ess_kernels.commands.texts import given_text, read_bytes

if TYPE_CHECKING:
    from ess_kernels.analysis.result import Analysis
    from ess_kernels.commands.checkpoint import Checkpoint
    from ess_kernels.commands.tokens import Tokens

MOST_BYTES = 2**24  # of a text: far more than any model takes
SUFFIXES = {"--html": ".html", "--json": ".json", "--parquet": ".parquet"}


def run(options: argparse.Namespace) -> int:
    """Everything that can be refused is refused before the model is loaded."""
    if problem := _requirements.problem():
        raise UserError(problem)
    if options.checkpoint is None:
        raise UserError("PATH_OR_NAME: expected a checkpoint; only --inputs of activations goes without")
    if options.checkpoint == DEMO:
        raise UserError(f"{DEMO}: `ess-kernels demo` measures the embedded model on one text; here it takes --inputs")
    require("transformers", "loads models")
    require("safetensors", "reads weights")
    files = _files(options)
    name, data = _given(options)
    check_numbers(options)

    from ess_kernels.commands.checkpoint import clean_copy, find_checkpoint
    from ess_kernels.commands.offline import hugging_face

    checkpoint = find_checkpoint(options.checkpoint, options.download, options.trust_remote_code)
    with Interrupts() as interrupts, hugging_face(options.download), clean_copy(checkpoint) as copy:
        # code that may run lies beside the weights, so there the folder itself is needed
        folder = checkpoint.folder if options.trust_remote_code else copy
        tokens, model = _prepare(options, checkpoint, folder, name, data)
        interrupts.check()
        found = _analyze(options, tokens, model)
        interrupts.check()
    if options.dry_run:
        say(found)
        return 0
    # a file that cannot be written must not cost the user the table, nor a closed pipe the files
    try:
        for option, path in files.items():
            _write(option, path, found, options.delimiter)
    finally:
        say(found.summary())
        if options.delimiter is not None:
            say("\n".join(["", *_dips(found, options.delimiter)]))
    for option, path in files.items():
        say(f"{option.removeprefix('--')}: {printable(path)}")
    return 0


def _files(options: argparse.Namespace) -> dict[str, Path]:
    """The files to write, by option, after a look whether they can be written."""
    given = {"--html": options.html, "--json": options.json, "--parquet": options.parquet, "--plot": options.plot}
    files = {option: path for option, path in given.items() if path is not None}
    for option, path in files.items():
        if option in SUFFIXES and path.suffix.lower() != SUFFIXES[option]:
            raise UserError(f"{option} {path}: expected a file that ends in {SUFFIXES[option]}")
    if "--parquet" in files:
        require("pyarrow", "writes Parquet files")
    if "--plot" in files:
        require("matplotlib", "draws the picture")
        files["--plot"] = picture(files["--plot"])
    check_distinct({"--text-file": options.text_file, "--tokens-file": options.tokens_file, **files})
    for option, path in files.items():
        check_writable(option, path)
    return files


def _given(options: argparse.Namespace) -> tuple[str, bytes]:
    """The text or the numbers of the tokens, and their name for errors."""
    if options.tokens_file is not None:
        name, data = (
            f"--tokens-file {options.tokens_file}",
            read_bytes("--tokens-file", options.tokens_file, MOST_BYTES + 1),
        )
    else:
        name, data = given_text(options.text, options.text_file, MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise UserError(f"{name}: expected at most {MOST_BYTES} bytes, got more")
    if not data:
        raise UserError(f"{name}: expected a text, got an empty one")
    try:
        data.decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{name}: expected UTF-8, got other bytes: {error.reason} at byte {error.start}") from error
    return name, data


def check_numbers(options: argparse.Namespace) -> None:
    import torch

    from ess_kernels._checks import tolerance_lists

    try:
        environment.default_memory_budget()
    except ValueError as error:
        raise UserError(str(error)) from error
    try:
        tolerance_lists(options.atol, None)
    except ValueError as error:
        raise UserError(f"--{error}") from error
    if options.delimiter == "":
        raise UserError("--delimiter: expected a text, got an empty one")
    if options.max_length is not None and options.max_length < 2:
        raise UserError(f"--max-length: expected at least 2 tokens, got {options.max_length}")
    if options.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch finds no CUDA device")


def _prepare(
    options: argparse.Namespace, checkpoint: Checkpoint, folder: Path, name: str, data: bytes
) -> tuple[Tokens, Any]:
    """The tokens and the model, which is loaded last."""
    from ess_kernels.analysis.model_sizes import longest, vocabulary
    from ess_kernels.commands import loading
    from ess_kernels.commands.tokens import fitting, tokens_of_numbers, tokens_of_text

    trust = options.trust_remote_code
    config = loading.load_config(checkpoint, folder, trust, options.attention)
    tokenizer = loading.load_tokenizer(checkpoint, folder, trust)
    if options.tokens_file is not None:
        tokens = tokens_of_numbers(name, data, tokenizer)
    elif tokenizer is None:
        raise UserError(f"{checkpoint.name}: has no tokenizer; --tokens-file takes a JSON list of the tokens' numbers")
    else:
        tokens = tokens_of_text(name, data.decode(), tokenizer)
    tokens = fitting(name, tokens, vocabulary(config), longest(config), options.max_length)
    _check_places(options, tokens)
    outline = loading.outline(checkpoint, config, options.dtype)
    if outline is not None:
        loading.check_layers(options.layers, outline)
    loading.check_memory(checkpoint, config, outline, options.dtype, options.device, len(tokens.ids))
    model = loading.load_model(checkpoint, folder, config, options.dtype, options.device, trust)
    return tokens, model


def _check_places(options: argparse.Namespace, tokens: Tokens) -> None:
    from ess_kernels._checks import check_positions
    from ess_kernels.analysis.delimiters import find_delimiters

    try:
        check_positions(options.positions, len(tokens.ids))
    except ValueError as error:
        raise UserError(f"--{error}") from error
    if options.delimiter is None:
        return
    if not tokens.readable:
        raise UserError("--delimiter: the checkpoint has no tokenizer, so tokens have no text to look for it in")
    if not find_delimiters(tokens.texts, options.delimiter):
        raise UserError(f"--delimiter: expected a text that is among the tokens, got {options.delimiter!r}")


def _analyze(options: argparse.Namespace, tokens: Tokens, model: Any) -> Any:
    import torch

    from ess_kernels.analysis.analyze import analyze
    from ess_kernels.commands.loading import one_line

    ids = torch.tensor([tokens.ids], device=options.device)
    try:
        return analyze(
            model,
            ids,
            torch.ones_like(ids),
            atol=options.atol,
            positions=options.positions,
            layers=options.layers,
            metrics=tuple(options.metrics),
            dry_run=options.dry_run,
            tokens=[tokens.texts],
        )
    except (ValueError, RuntimeError) as error:  # no mixer, no memory, a model that fails on its own input
        raise UserError(f"{options.checkpoint}: {one_line(error)}") from error


def _write(option: str, path: Path, found: Analysis, delimiter: str | None) -> None:
    if option == "--plot":
        write(path, _figure(found, delimiter).savefig)
    elif option == "--html":
        from ess_kernels.analysis.html import write_report

        write(path, lambda temporary: write_report(found, temporary, delimiter=delimiter))
    else:
        write(path, found.save)


def _figure(found: Analysis, delimiter: str | None) -> Any:
    """Layers by positions; below it, where a delimiter is given, ESS around it."""
    from matplotlib.figure import Figure

    from ess_kernels.analysis.plots import plot_delimiters, plot_heatmap

    height = min(12.0, 1.6 + 0.28 * max(4, len(found.layers)))
    heights = [height] if delimiter is None else [height, 3.6]
    figure = Figure(figsize=(8.0, sum(heights)), dpi=140, layout="constrained")
    parts = figure.subfigures(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    plot_heatmap(found, parts[0].subplots())
    if delimiter is not None:
        plot_delimiters(found, parts[1].subplots(), delimiter=delimiter)
    return figure


def _dips(found: Analysis, delimiter: str) -> list[str]:
    """How far ESS falls at the delimiter, a line a layer."""
    from ess_kernels.analysis.delimiters import delimiter_dips, marks_of
    from ess_kernels.analysis.values import metric_label

    dips = delimiter_dips(found, delimiter, of_cap=True)
    rows = [
        [printable(layer), "-" if math.isnan(depth) else f"{100 * depth:.1f} %"]
        for layer, depth in dips.depth[delimiter].items()
    ]
    places, metric = sum(map(len, marks_of(found, delimiter=delimiter))), metric_label(dips.metric)
    return [
        f"Delimiter {delimiter!r}: found {places} times, with ESS on both sides {dips.count[delimiter]} times.",
        f"Dip: by how much {metric}, as a share of the cap, is smaller there than before.",
        "",
        *text_table(["name", "dip"], rows, left=("name",)),
    ]
