"""Operators of which every process of a group holds a share, and constructors that make them of DTensors."""

from __future__ import annotations

import functools
import inspect
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ParamSpec

from .._readable import any_dtensor
from .structure import Operator

P = ParamSpec("P")


class Spread(Operator):
    """An operator that no process holds as a whole: metrics are asked of its shares, by all processes at once."""

    @abstractmethod
    def answer(self, metric: Callable[..., Any], positions: Any, **arguments: Any) -> Any:
        """What `metric(op, positions=..., **arguments)` says of this process's share of the positions."""


def takes_dtensors(layouts: Any) -> Callable[[Callable[P, Operator]], Callable[P, Operator]]:
    """Let a constructor take DTensors; `layouts` of its tensors are those of `separate.takes_sequences`."""

    def decorate(constructor: Callable[P, Operator]) -> Callable[P, Operator]:
        parameters = list(inspect.signature(constructor).parameters)

        @functools.wraps(constructor)
        def construct(*args: P.args, **kwargs: P.kwargs) -> Operator:
            if not (any_dtensor(args) or any_dtensor(kwargs.values())):
                return constructor(*args, **kwargs)
            # what knows about processes is imported where there are some
            from ..distributed.dtensors import construct as construct_spread

            arguments = dict(zip(parameters, args)) | kwargs
            return construct_spread(constructor.__name__, constructor, layouts, arguments)

        return construct

    return decorate
