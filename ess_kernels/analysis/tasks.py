"""Synthetic tasks that ask a sequence mixer to remember: recall, selective copying and compression.

Sources: multi-query associative recall (MQAR) of Arora et al. (arXiv 2312.04927); selective copying and compression as
in Poli et al. (arXiv 2403.17844), which section 4 of the ESS paper (arXiv 2504.19561) trains on.

A task is a small object with its sizes; `task.draw(batch, generator)` makes sequences, the same ones from generators
in the same state. Tasks are drawn on the CPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Generator, Tensor

from .._checks import integer

NOT_ASKED = -100  # cross_entropy's own default for targets that are left out


@dataclass(frozen=True)
class Batch:
    """Sequences and what is asked about them.

    Attributes:
        tokens: int64 `[B, L]`, 0 to `vocab - 1`.
        targets: int64 `[B, L]`, the token that the model should name at each position; `NOT_ASKED` (-100) where nothing
            is asked.
    """

    tokens: Tensor
    targets: Tensor

    @property
    def asked(self) -> Tensor:
        """The loss mask, bool `[B, L]`: true where something is asked."""
        return self.targets != NOT_ASKED


class Task(Protocol):
    """What the generators of this file have in common."""

    @property
    def length(self) -> int: ...

    @property
    def vocab(self) -> int: ...

    def draw(self, batch: int, generator: Generator) -> Batch: ...


@dataclass(frozen=True)
class MQAR:
    """Multi-query associative recall: `kv` pairs of a key and a value, then the keys again, each asking for its value.

    A sequence begins with key, value, key, value, ... After the pairs, each key stands `asks` times more at random
    places, and the target there is its value; the remaining places hold the filler 0. The keys of a sequence differ.

    Token 0 is the filler, keys are `1 .. vocab // 2 - 1`, values are `vocab // 2 .. vocab - 1`.

    The task of the paper asks every key once and needs `4 kv <= length`. `asks=2` trains several times faster.

    Args:
        length: tokens in a sequence, L.
        kv: pairs in a sequence.
        vocab: size of the vocabulary.
        asks: how often every key is asked.

    Raises:
        ValueError: the sequence is too short (`4 kv <= length` and `(2 + asks) kv <= length`), or the vocabulary too
            small to have `kv` different keys.
    """

    length: int
    kv: int
    vocab: int
    asks: int = 1

    def __post_init__(self) -> None:
        for name in ("length", "kv", "vocab", "asks"):
            integer(name, getattr(self, name), minimum=1)
        needed = max(4, 2 + self.asks) * self.kv
        if self.length < needed:
            raise ValueError(
                f"length: expected at least max(4, 2 + asks) kv = {needed} for kv={self.kv}, got {self.length}"
            )
        if self.vocab // 2 - 1 < self.kv:
            raise ValueError(
                f"vocab: expected at least 2 kv + 2 = {2 * self.kv + 2} for kv={self.kv} different keys,"
                f" got {self.vocab}"
            )

    def draw(self, batch: int, generator: Generator) -> Batch:
        half = self.vocab // 2
        keys = _places(batch, half - 1, self.kv, generator) + 1
        values = torch.randint(half, self.vocab, (batch, self.kv), generator=generator)
        tokens, targets = _empty(batch, self.length)
        tokens[:, 0 : 2 * self.kv : 2] = keys
        tokens[:, 1 : 2 * self.kv : 2] = values
        places = _places(batch, self.length - 2 * self.kv, self.asks * self.kv, generator) + 2 * self.kv
        tokens.scatter_(1, places, keys.repeat(1, self.asks))
        targets.scatter_(1, places, values.repeat(1, self.asks))
        return Batch(tokens, targets)


@dataclass(frozen=True)
class SelectiveCopying:
    """Copying the tokens that stand at random places among blanks, in their order.

    A sequence is `length - to_copy - 1` places with `to_copy` content tokens among blanks, then one copy mark, then
    `to_copy` blanks, at which the content is asked for, token by token.

    Token 0 is the blank, token 1 the copy mark, content tokens are `2 .. vocab - 1` and may repeat.

    Args:
        length: tokens in a sequence, L.
        to_copy: content tokens in a sequence (`ntc` in the paper).
        vocab: size of the vocabulary.

    Raises:
        ValueError: unless `2 to_copy + 1 < length`, or the vocabulary has no content token.
    """

    length: int
    to_copy: int
    vocab: int

    def __post_init__(self) -> None:
        for name, minimum in (("length", 1), ("to_copy", 1), ("vocab", 3)):
            integer(name, getattr(self, name), minimum=minimum)
        if not 2 * self.to_copy + 1 < self.length:
            raise ValueError(
                f"length: expected more than 2 to_copy + 1 = {2 * self.to_copy + 1} for to_copy={self.to_copy},"
                f" got {self.length}"
            )

    def draw(self, batch: int, generator: Generator) -> Batch:
        mark = self.length - self.to_copy - 1
        content = torch.randint(2, self.vocab, (batch, self.to_copy), generator=generator)
        places = _places(batch, mark, self.to_copy, generator).sort(1).values
        tokens, targets = _empty(batch, self.length)
        tokens.scatter_(1, places, content)
        tokens[:, mark] = 1
        targets[:, mark + 1 :] = content
        return Batch(tokens, targets)


@dataclass(frozen=True)
class Compression:
    """Random tokens and then a mark: everything before the mark is to be told from what the model says at the mark.

    The target at each position before the mark is that position's own token, which says nothing if a decoder sees the
    model's output there. A decoder must see the output at the mark, the last position, and the number of the position
    asked for, and nothing else.

    Token 0 is the mark, the others are `1 .. vocab - 1`.

    Args:
        length: tokens in a sequence, L, the mark included.
        vocab: size of the vocabulary.

    Raises:
        ValueError: a length or a vocabulary below 2.
    """

    length: int
    vocab: int

    def __post_init__(self) -> None:
        for name in ("length", "vocab"):
            integer(name, getattr(self, name), minimum=2)

    def draw(self, batch: int, generator: Generator) -> Batch:
        tokens, targets = _empty(batch, self.length)
        tokens[:, :-1] = torch.randint(1, self.vocab, (batch, self.length - 1), generator=generator)
        targets[:, :-1] = tokens[:, :-1]
        return Batch(tokens, targets)


def _empty(batch: int, length: int) -> tuple[Tensor, Tensor]:
    """Tokens that are all 0, and targets that ask for nothing."""
    return torch.zeros(batch, length, dtype=torch.int64), torch.full((batch, length), NOT_ASKED)


def _places(batch: int, among: int, count: int, generator: Generator) -> Tensor:
    """`count` different numbers of `0 .. among - 1` in random order for each sequence: int64 `[batch, count]`."""
    return torch.rand(batch, among, generator=generator).argsort(1)[:, :count]
