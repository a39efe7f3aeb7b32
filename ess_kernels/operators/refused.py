"""Mixers that are no operator: they have a name here so that a user is told why."""

from __future__ import annotations

from typing import Any, NoReturn


def ttt(*args: Any, **kwargs: Any) -> NoReturn:
    """Test-time training: always raises `NotImplementedError`."""
    raise NotImplementedError(
        "ttt: not linear in its values: what a token reads of the state goes through a layer norm before the update, "
        "so there is no matrix T"
    )


def titans(*args: Any, **kwargs: Any) -> NoReturn:
    """Titans' neural memory: always raises `NotImplementedError`."""
    raise NotImplementedError(
        "titans: not linear in its values: what a token reads of the state goes through a layer norm before the "
        "update, so there is no matrix T"
    )


def gated_oja_rule(*args: Any, **kwargs: Any) -> NoReturn:
    """The gated Oja rule: always raises `NotImplementedError`."""
    raise NotImplementedError(
        "gated_oja_rule: not linear in its values: they are in the transitions, S += beta (k - S v) v^T, so there is "
        "no matrix T; it is linear in its keys"
    )


def mom(*args: Any, **kwargs: Any) -> NoReturn:
    """Mixture of memories: always raises `NotImplementedError`."""
    raise NotImplementedError(
        "mom: tokens are routed to memories of limited capacity, for which there is no constructor; each memory by "
        "itself is a gated delta rule over the tokens routed to it"
    )
