"""Prompts of a Parquet file, a few at a time: texts, or lists of the tokens' numbers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ess_kernels.analysis.model_sizes import too_few, unknown_token

from . import optional
from .errors import RunRefused
from .models import Loaded
from .settings import Settings

ROWS = 64  # read at once: prompts are short beside what is found out about them
BUFFER = 2**20  # bytes of a column that are read at once


@dataclass(frozen=True)
class Prompt:
    """One row of a Parquet file.

    Attributes:
        row: its number in the file.
        id: what the id column has: an integer, a text or None.
        content: a text as bytes, the tokens' numbers, or None.
    """

    row: int
    id: int | str | None
    content: Any


def check_columns(paths: list[Path], settings: Settings) -> str:
    """`"integer"` or `"text"`: what all ids are. Reads the files' ends alone; a file that cannot be read has no say.

    Raises:
        RunRefused: a column is missing or of another type, or ids are integers here and texts there.
    """
    arrow, parquet = optional.pyarrow()
    kinds: dict[str, Path] = {}
    for path in paths:
        try:
            schema = parquet.read_schema(path)
        except (OSError, arrow.ArrowException):
            continue
        for option, name in (("id_column", settings.id_column), ("text_column", settings.text_column)):
            if schema.names.count(name) != 1:
                there = ", ".join(schema.names) or "none"
                raise RunRefused(f"{option}: {path} has no column {name!r}; its columns are {there}")
        kind = _id_kind(arrow, schema.field(settings.id_column).type)
        if kind is None:
            found = schema.field(settings.id_column).type
            raise RunRefused(f"id_column: expected integers or texts in {settings.id_column!r} of {path}, got {found}")
        kinds.setdefault(kind, path)
        content = schema.field(settings.text_column).type
        if not _is_text(arrow, content) and not _is_tokens(arrow, content):
            raise RunRefused(
                f"text_column: expected texts, or lists of tokens' numbers, in {settings.text_column!r} of {path}, "
                f"got {content}"
            )
    if len(kinds) > 1:
        raise RunRefused(f"id_column: integers in {kinds['integer']}, and texts in {kinds['text']}")
    return next(iter(kinds), "text")


def has_texts(paths: list[Path], settings: Settings) -> Path | None:
    """A file whose prompts are texts, so that a tokenizer is needed; None where there is none."""
    arrow, parquet = optional.pyarrow()
    for path in paths:
        try:
            kind = parquet.read_schema(path).field(settings.text_column).type
        except (OSError, KeyError, arrow.ArrowException):
            continue
        if _is_text(arrow, kind):
            return path
    return None


def count(path: Path) -> int:
    """How many prompts a file has; 0 where it cannot be read."""
    arrow, parquet = optional.pyarrow()
    try:
        return parquet.read_metadata(path).num_rows
    except (OSError, arrow.ArrowException):
        return 0


def read(path: Path, settings: Settings) -> Iterator[Prompt]:
    """The prompts of a file, in order. Memory is that of `ROWS` of them.

    Raises:
        OSError, pyarrow.ArrowException: the file cannot be read.
        KeyError: it has no such column.
    """
    arrow, parquet = optional.pyarrow()
    row = 0
    with parquet.ParquetFile(path, buffer_size=BUFFER, pre_buffer=False) as file:
        columns = list(dict.fromkeys([settings.id_column, settings.text_column]))
        for batch in file.iter_batches(batch_size=ROWS, columns=columns, use_threads=False):
            ids = _plain(arrow, batch.column(settings.id_column))
            contents = _plain(arrow, batch.column(settings.text_column))
            for identity, content in zip(ids, contents):
                if isinstance(identity, bytes):
                    identity = identity.decode("utf-8", "backslashreplace")
                yield Prompt(row, identity, content)
                row += 1


def tokens_of(prompt: Prompt, loaded: Loaded, settings: Settings) -> list[int] | str:
    """The tokens' numbers of a prompt, or what is wrong with it."""
    ids: list[int] | str = _numbers(prompt.content, loaded)
    if isinstance(ids, str):
        return ids
    if settings.max_length is not None:
        ids = ids[: settings.max_length]
    if problem := too_few(len(ids)):
        return problem
    most = settings.max_tokens if loaded.longest is None else min(settings.max_tokens, loaded.longest)
    if len(ids) > most:
        whose = "" if most == settings.max_tokens else ", the positions that the model has"
        return f"expected at most {most} tokens{whose}, got {len(ids)}"
    return unknown_token(ids, loaded.vocabulary) or ids


def _numbers(content: Any, loaded: Loaded) -> list[int] | str:
    if content is None:
        return "expected a prompt, got null"
    if isinstance(content, list):
        return "expected tokens' numbers, got null among them" if None in content else content
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        return f"expected UTF-8, got other bytes: {error.reason} at byte {error.start}"
    if not text:
        return "expected a prompt, got an empty one"
    assert loaded.encode is not None  # looked at before the run began
    try:
        return list(loaded.encode(text))
    except Exception as error:  # a tokenizer that is strange raises anything
        return f"the tokenizer fails: {one_line(error)}"


def one_line(error: BaseException) -> str:
    """The kind of an error and the first line of its message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return ": ".join([type(error).__name__, *lines[:1]])


# how errors say that there was too little memory, or that a GPU has failed: torch has no class of its own for some
_OF_THE_MACHINE = ("MemoryError", "out of memory", "not enough memory", "can't allocate memory", "CUDA error")


def is_of_the_machine(problem: str) -> bool:
    """Whether a problem says something of this machine at this moment, and nothing of the prompt."""
    return any(words in problem for words in _OF_THE_MACHINE)


def _plain(arrow: Any, column: Any) -> list[Any]:
    """Values of a column, texts as bytes: a file may hold bytes that are no text."""
    if arrow.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if _is_text(arrow, column.type):
        column = column.cast(arrow.large_binary())
    return column.to_pylist()


def _id_kind(arrow: Any, kind: Any) -> str | None:
    if arrow.types.is_dictionary(kind):
        kind = kind.value_type
    if arrow.types.is_integer(kind) and kind != arrow.uint64():
        return "integer"
    return "text" if _is_text(arrow, kind) else None


def _is_text(arrow: Any, kind: Any) -> bool:
    types = arrow.types
    if types.is_dictionary(kind):
        kind = kind.value_type
    checks = (types.is_string, types.is_large_string, types.is_string_view)
    return any(check(kind) for check in (*checks, types.is_binary, types.is_large_binary, types.is_binary_view))


def _is_tokens(arrow: Any, kind: Any) -> bool:
    types = arrow.types
    lists = (types.is_list, types.is_large_list, types.is_fixed_size_list)
    return any(check(kind) for check in lists) and types.is_integer(kind.value_type)
