"""Small models for the synthetic tasks, and a training loop that measures ESS on the way.

A model is an embedding, blocks of a featurizer and a gated MLP, and an output layer: two blocks of width 32 learn to
recall in seconds on one CPU core.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..metrics import entropy_ess, tolerance_ess
from ..operators.structure import Operator
from .featurizers import FEATURIZERS, Featurizer
from .tasks import Batch, Task

EVALUATION_SEED = 7  # of the sequences that accuracy is measured on: the same ones for all runs of a task


class Block(nn.Module):
    """A featurizer and a gated MLP, each after a norm and added to what came in."""

    def __init__(self, kind: str, width: int, heads: int, **settings: Any):
        super().__init__()
        if kind not in FEATURIZERS:
            raise ValueError(f"kinds: expected names among {', '.join(FEATURIZERS)}, got {kind!r}")
        self.mixer: Featurizer = FEATURIZERS[kind](width, heads, **settings)
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(2 * width, width, bias=False)

    def mixer_input(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, x.shape[-1:])

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mixer(self.mixer_input(x))
        gate, value = self.up(F.rms_norm(x, x.shape[-1:])).chunk(2, -1)
        return x + self.down(F.silu(gate) * value)


class TaskModel(nn.Module):
    """Tokens int64 `[B, L]` to logits of the answer at every position, `[B, L, vocab]`.

    Args:
        kinds: the featurizer of each block, by its name in `FEATURIZERS`.
        vocab: size of the vocabulary.
        width, heads: of every block.
        settings: what the featurizers take besides: `state`, `smeared`, `beta`, ... A featurizer gets those it knows.

    Raises:
        ValueError: an unknown featurizer, or sizes that do not fit.
    """

    def __init__(self, kinds: Sequence[str], vocab: int, width: int, heads: int, **settings: Any):
        super().__init__()
        self.embedding = nn.Embedding(vocab, width)
        nn.init.normal_(self.embedding.weight, std=0.5)
        self.blocks = nn.ModuleList(Block(kind, width, heads, **_known(kind, settings)) for kind in kinds)
        self.output = nn.Linear(width, vocab, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x)
        return self.output(F.rms_norm(x, x.shape[-1:]))

    def mixer_inputs(self, tokens: Tensor) -> list[tuple[Featurizer, Tensor]]:
        """Every block's featurizer and what it is given for these tokens, `[B, L, width]`."""
        x, found = self.embedding(tokens), []
        for block in self.blocks:
            assert isinstance(block, Block)
            found.append((block.mixer, block.mixer_input(x)))
            x = block(x)
        return found

    def operators(self, tokens: Tensor) -> list[Operator]:
        """Every block's operator for these tokens."""
        return [mixer.operator(x) for mixer, x in self.mixer_inputs(tokens)]


def _known(kind: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Without `beta` and `alpha` where a featurizer has none, so that blocks of several kinds share their settings."""
    takes = {"beta": ("GLA", "WLA"), "alpha": ("GLA-S6",), "step_bias": ("S6",)}
    return {name: value for name, value in settings.items() if kind in takes.get(name, (kind,))}


def loss_and_accuracy(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy in nats over what is asked, with its gradient, and the share of right answers."""
    asked = batch.asked
    logits, targets = model(batch.tokens)[asked], batch.targets[asked]
    return F.cross_entropy(logits, targets), (logits.argmax(-1) == targets).float().mean()


@dataclass(frozen=True)
class Schedule:
    """How a model is trained: AdamW, a rate that rises for `warm_up` steps and falls in a straight line to a tenth.

    Attributes:
        steps: number of steps.
        batch: sequences in a step.
        rate: the highest learning rate.
        weight_decay: of all parameters.
        warm_up: steps until the rate has risen.
        checkpoints: how many times the model is measured after its initialisation, evenly spread; the last one is at
            the end. `steps` is a multiple of it.
    """

    steps: int = 300
    batch: int = 32
    rate: float = 1e-2
    weight_decay: float = 0.1
    warm_up: int = 30
    checkpoints: int = 6

    def __post_init__(self) -> None:
        if self.checkpoints < 1 or self.steps % self.checkpoints:
            raise ValueError(f"checkpoints: expected a divisor of steps={self.steps}, got {self.checkpoints}")

    def rate_at(self, step: int) -> float:
        return self.rate * min(1.0, (step + 1) / self.warm_up) * (1 - 0.9 * step / self.steps)


@dataclass(frozen=True)
class Checkpoint:
    """A model in training. The ESS of a layer is the mean over positions, heads and samples.

    Attributes:
        step: steps done.
        loss, accuracy: on sequences that are not trained on.
        entropy: entropy-ESS of each layer.
        tolerance: tolerance-ESS of each layer.
    """

    step: int
    loss: float
    accuracy: float
    entropy: list[float]
    tolerance: list[float]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@torch.no_grad()
def checkpoint(model: TaskModel, step: int, test: Batch, samples: int = 8, atol: float = 1e-3) -> Checkpoint:
    """Measures a model: accuracy on all of `test`, ESS on its first `samples` sequences."""
    loss, accuracy = loss_and_accuracy(model, test)
    found = model.operators(test.tokens[:samples])
    entropy = [float(entropy_ess(op).mean()) for op in found]
    return Checkpoint(step, float(loss), float(accuracy), entropy, [mean_count(op, atol) for op in found])


def mean_count(op: Operator, atol: float) -> float:
    """Tolerance-ESS, the mean over everything."""
    counts = tolerance_ess(op, atol)
    assert isinstance(counts, Tensor)
    return float(counts.double().mean())


def train(
    model: TaskModel,
    task: Task,
    schedule: Schedule | None = None,
    *,
    seed: int = 0,
    penalty: Callable[[TaskModel, Tensor], Tensor] | None = None,
    test_size: int = 256,
    samples: int = 8,
    atol: float = 1e-3,
) -> list[Checkpoint]:
    """Trains a model on fresh sequences of a task, and measures it before, on the way and at the end.

    Args:
        model: changed in place. Its weights are the caller's matter, and their seed with them.
        task: a task of `analysis.tasks`; what the model can be asked at each position, so not `Compression`.
        schedule: None: `Schedule()`.
        seed: of the sequences trained on. Those that are measured on are the same for all seeds.
        penalty: called with the model and the tokens `[B, L]` of a step; what it returns is added to the loss.
        test_size: sequences that loss and accuracy are measured on.
        samples: of those, how many ESS is measured on.
        atol: the tolerance of tolerance-ESS.

    Returns:
        `schedule.checkpoints + 1` checkpoints, the first one at step 0.
    """
    schedule = schedule or Schedule()
    device = next(model.parameters()).device
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=schedule.rate, weight_decay=schedule.weight_decay, betas=(0.9, 0.98), fused=True
    )
    generator = torch.Generator().manual_seed(1000 + seed)
    test = _to(task.draw(test_size, torch.Generator().manual_seed(EVALUATION_SEED)), device)
    found = [checkpoint(model, 0, test, samples, atol)]
    for step in range(schedule.steps):
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate_at(step)
        optimizer.zero_grad()
        batch = _to(task.draw(schedule.batch, generator), device)
        loss, _ = loss_and_accuracy(model, batch)
        if penalty is not None:
            loss = loss + penalty(model, batch.tokens)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % (schedule.steps // schedule.checkpoints) == 0:
            found.append(checkpoint(model, step + 1, test, samples, atol))
    return found


def _to(batch: Batch, device: torch.device) -> Batch:
    return Batch(batch.tokens.to(device), batch.targets.to(device))
