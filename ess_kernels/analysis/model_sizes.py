"""What a model of transformers can take, as its configuration says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

FEWEST = 2  # a sequence has a position from two tokens on


def longest(config: Any) -> int | None:
    """The largest number of tokens that the model has positions for; None where it has no limit."""
    names = ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx")
    return next((size for name in names if (size := number(config, name)) > 0), None)


def vocabulary(config: Any) -> int | None:
    """How many different tokens the model knows; None where its configuration does not say."""
    size = number(config, "vocab_size")
    return size if size > 0 else None


def number(config: Any, name: str) -> int:
    """A number that the configuration of the language model has; 0 where it has none of that name."""
    value = getattr(config.get_text_config(), name, 0)
    return value if type(value) is int else 0


def too_few(count: int) -> str | None:
    """What is wrong with a number of tokens that is too small to have a position; None if nothing is."""
    return None if count >= FEWEST else f"expected at least {FEWEST} tokens, got {count}"


def unknown_token(ids: Sequence[int], vocabulary: int | None) -> str | None:
    """What is wrong with tokens' numbers of which one is not in the model's vocabulary; None if nothing is."""
    for number in ids:
        if number < 0 or (vocabulary is not None and number >= vocabulary):
            largest = "" if vocabulary is None else f" to {vocabulary - 1}"
            return f"expected tokens of the model's vocabulary, 0{largest}, got {number}"
    return None
