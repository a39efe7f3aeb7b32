"""The tokens that a model is to run on: of a text, or given as numbers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from ess_kernels.analysis.model_sizes import too_few, unknown_token
from ess_kernels.commands.errors import UserError


@dataclass(frozen=True)
class Tokens:
    """One row of tokens.

    Attributes:
        ids: the numbers, in the model's vocabulary.
        texts: what each of them stands for; the number itself where there is no tokenizer.
        readable: whether there is one.
    """

    ids: list[int]
    texts: list[str]
    readable: bool


def tokens_of_text(name: str, text: str, tokenizer: Any) -> Tokens:
    """What the tokenizer makes of a text, with the special tokens that it adds by itself.

    Raises:
        UserError: it makes nothing of it.
    """
    try:
        ids = [int(number) for number in tokenizer(text)["input_ids"]]
    except Exception as error:  # a tokenizer that is strange raises anything
        raise UserError(f"{name}: the tokenizer fails: {type(error).__name__}: {error}") from error
    return Tokens(ids, _texts(ids, tokenizer), True)


def tokens_of_numbers(name: str, data: bytes, tokenizer: Any) -> Tokens:
    """A JSON list of the tokens' numbers.

    Raises:
        UserError: it is none.
    """
    try:
        ids = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{name}: expected a JSON list of integers: {error}") from error
    if not isinstance(ids, list):
        raise UserError(f"{name}: expected a JSON list of integers, got {type(ids).__name__}")
    for value in ids:
        if isinstance(value, bool) or not isinstance(value, int):
            raise UserError(f"{name}: expected a JSON list of integers, got {value!r} in it")
    if tokenizer is None:
        return Tokens(ids, [str(number) for number in ids], False)
    return Tokens(ids, _texts(ids, tokenizer), True)


def fitting(name: str, tokens: Tokens, vocabulary: int | None, longest: int | None, most: int | None) -> Tokens:
    """The first `most` tokens.

    Args:
        name: of the text, for errors.
        tokens: all of them.
        vocabulary: how many different tokens the model knows; None: not known.
        longest: how many positions it has; None: as many as one likes.
        most: what the caller wants at most; None: all.

    Raises:
        UserError: there are fewer than two, more than the model has positions for, or some that it does not know.
    """
    count = len(tokens.ids) if most is None else min(len(tokens.ids), most)
    if problem := too_few(count):
        raise UserError(f"{name}: {problem}")
    if longest is not None and count > longest:
        raise UserError(
            f"{name}: expected at most {longest} tokens, the positions that the model has, got {count}; --max-length "
            f"{longest} takes the first of them"
        )
    ids = tokens.ids[:count]
    if problem := unknown_token(ids, vocabulary):
        raise UserError(f"{name}: {problem}")
    return Tokens(ids, tokens.texts[:count], tokens.readable)


def _texts(ids: list[int], tokenizer: Any) -> list[str]:
    known = {}
    for number in set(ids):
        try:
            text = tokenizer.decode([number], clean_up_tokenization_spaces=False)
            known[number] = text or str(tokenizer.convert_ids_to_tokens(number))
        except Exception:  # a number that the tokenizer does not know: `fitting` says so if the model does not either
            known[number] = str(number)
    return [known[number] for number in ids]
