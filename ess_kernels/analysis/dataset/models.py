"""The model of a worker, made once for many shards, and what tells one model from another."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ess_kernels.analysis.model_sizes import longest, vocabulary

# gives a model, or a model and its tokenizer
MakeModel = Callable[[], Any]


@dataclass(frozen=True)
class Loaded:
    """A model that is ready to run.

    Attributes:
        model: the torch module.
        encode: gives the tokens' numbers of a text; None where there is no tokenizer, so that prompts must be numbers.
        vocabulary: how many different tokens it knows; None: not known.
        longest: how many positions it has; None: as many as one likes.
    """

    model: nn.Module
    encode: Callable[[str], Sequence[int]] | None
    vocabulary: int | None
    longest: int | None

    @property
    def device(self) -> torch.device:
        tensor = next(iter(self.model.parameters()), None)
        return torch.device("cpu") if tensor is None else tensor.device


def load(made: Any, tokenizer: Any = None) -> Loaded:
    """A model, or a pair of a model and its tokenizer, as `MakeModel` gives them.

    Args:
        made: what it gave.
        tokenizer: the tokenizer, if `made` is a model alone: a function of a text that gives the tokens' numbers, or a
            mapping that has them as `input_ids`.

    Raises:
        TypeError: something else.
    """
    model, tokenizer = made if isinstance(made, tuple) and len(made) == 2 else (made, tokenizer)
    if not isinstance(model, nn.Module):
        kind = type(model).__name__
        raise TypeError(f"model: expected a torch.nn.Module, or a function that makes one, got {kind}")
    if tokenizer is not None and not callable(tokenizer):
        raise TypeError(f"tokenizer: expected a function of a text, got {type(tokenizer).__name__}")
    config = getattr(model, "config", None)
    if not callable(getattr(config, "get_text_config", None)):
        config = None
    return Loaded(
        model,
        None if tokenizer is None else lambda text: _encoded(tokenizer, text),
        None if config is None else vocabulary(config),
        None if config is None else longest(config),
    )


@dataclass
class Source:
    """The model of a run, as the caller gave it.

    Attributes:
        given: a model, a function that makes one, or None. The function may have two methods that do not make the
            model: `identity()` gives what identifies it, as plain values, and `check(layers, texts_of)` raises if it
            cannot be made, if it has no such layers, or if it has no tokenizer and a file `texts_of` (None: there is
            none) has texts.
        tokenizer: as for `load`.
        loaded: the model, once somebody has needed it in this process.
    """

    given: Any
    tokenizer: Any = None
    loaded: Loaded | None = None

    @property
    def make(self) -> MakeModel | None:
        """The function, for other processes."""
        return None if self.given is None or isinstance(self.given, nn.Module) else self.given

    def load(self) -> Loaded | None:
        """The model, made if it has not been made; None for activations.

        Raises:
            TypeError: it is no model.
            whatever the function raises.
        """
        if self.loaded is None and self.given is not None:
            if self.make is None:
                made = self.given
            elif not callable(self.make):
                raise TypeError(
                    f"model: expected a torch.nn.Module, or a function that makes one, got {type(self.given).__name__}"
                )
            else:
                made = self.make()
            self.loaded = load(made, self.tokenizer)
        return self.loaded

    def identity(self) -> dict[str, Any]:
        """What identifies the model; empty for activations."""
        known = getattr(self.make, "identity", None)
        if callable(known):
            return dict(known())
        loaded = self.load()
        return {} if loaded is None else identity_of(loaded.model)

    def forget(self) -> None:
        """Lets go of a model that was made here."""
        self.loaded = None


def _encoded(tokenizer: Any, text: str) -> Sequence[int]:
    found = tokenizer(text)
    ids = found["input_ids"] if isinstance(found, Mapping) else found
    return [int(number) for number in ids]


def identity_of(model: nn.Module) -> dict[str, Any]:
    """The model's class, and a hash of all of its numbers."""
    found = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        found.update(name.encode() + b"\0")
        if isinstance(value, Tensor):
            found.update(f"{value.dtype} {list(value.shape)}\0".encode())
            # bytes as they lie in memory: bfloat16 has no type in numpy
            found.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return {"class": type(model).__name__, "sha256": found.hexdigest()}
