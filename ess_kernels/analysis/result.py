"""What `analyze` returns: the ESS of every mixer of a model, and why each other one was left out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class LayerResult:
    """The ESS of one mixer of a model. Tensors lie on the CPU; B rows of the batch, H heads or channels, P positions.

    Attributes:
        name: the module's name in `model.named_modules()`, followed by `[1]`, `[2]`, ... for its second, third, ...
            call in one forward pass.
        mixer: the kind of mixer, for instance `"attention"`, `"mamba2"`, `"gated_delta_rule"`.
        route: how the mixer was seen: `"registry"`, `"global"`, `"module"`, `"torch"`, or one of these followed by
            `", one-hot"` where `T` was read off by one-hot values.
        state_size: the theoretical state size (TSS); None where the state grows with the position, as in attention.
        length: L, the number of tokens of a row.
        positions: int64 `[P]`, the positions i of `H_i = T[i:, :i]`.
        cap: int64 `[B, P]`, the largest ESS possible, `min(state_size, i, L - i)` of the row's own sequence; 0 where a
            position is not valid.
        valid: bool `[B, P]`: false in padding and where a sequence starts.
        entropy: float64 `[B, H, P]`, or None if it was not asked for. NaN marks bad data.
        tolerance: int64 `[B, H, P]` by absolute tolerance; empty if not asked for. -1 marks bad data.
        unresolved: share of the counts that no certificate vouches for, 0 to 1.
        capture_error: largest difference between `T u`, with the mixer's skip and gate, and what the mixer passed on,
            in units of the largest number passed on.
        check: `"independent"` if `T` was made from other tensors than those that the mixer multiplied with,
            `"attribution only"` where `T` is the model's own softmax output: the error then proves where it belongs,
            and no formula.
        dtype: of the mixer's values, for instance `"float32"`.
        backends: what computed each metric, for instance `{"tolerance_ess": "native"}`.
        seconds: both metrics together.
    """

    name: str
    mixer: str
    route: str
    state_size: int | None
    length: int
    positions: Tensor
    cap: Tensor
    valid: Tensor
    entropy: Tensor | None
    tolerance: Mapping[float, Tensor]
    unresolved: float
    capture_error: float
    check: str
    dtype: str
    backends: Mapping[str, str]
    seconds: float


@dataclass(frozen=True)
class Analysis:
    """The ESS of a model on one batch.

    Attributes:
        layers: by module name, in the order in which the mixers ran.
        skipped: by module name, why a module that mixes over time is not in `layers`.
        model: the model's class.
        tolerances: the absolute tolerances asked for.
        tokens: the text of every token, `[B][L]`, where the caller gave it; for reports.
        notes: what the reader should know, for instance that dropout was switched off.
        versions: of this package, torch, transformers where it is installed, and Python.
        seconds: everything: forward pass, verification, metrics.
    """

    layers: Mapping[str, LayerResult]
    skipped: Mapping[str, str]
    model: str
    tolerances: tuple[float, ...]
    tokens: list[list[str]] | None = None
    notes: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0
