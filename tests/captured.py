"""Tiny models, and what is the same before and after they were captured: shared by the tests of capture."""

from __future__ import annotations

import functools
import sys
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from ess_kernels.capture.torch_functions import modules_of
from ess_kernels.testing import tiny_models

BATCH, LENGTH = 2, 24


def ids(rows: int = BATCH, length: int = LENGTH) -> Tensor:
    return torch.randint(3, 128, (rows, length), generator=torch.Generator().manual_seed(1))


@functools.cache
def tiny(name: str, attention: str = "sdpa") -> Any:
    """A model that tests must leave as it was."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return tiny_models.tiny_model(name, attention)


def padding(side: str, count: int = 7) -> Tensor:
    """`[B, L]` where the first row has `count` tokens of padding."""
    mask = torch.ones(BATCH, LENGTH, dtype=torch.int64)
    mask[0, slice(0, count) if side == "left" else slice(LENGTH - count, LENGTH)] = 0
    return mask


def patched(model: nn.Module) -> dict[Any, Any]:
    """Everything that capture may replace: functions, methods, hooks and flags of the model, and the registry."""
    found: dict[Any, Any] = {}
    for namespace in modules_of(model):
        found |= {(namespace.__name__, name): id(x) for name, x in vars(namespace).items() if callable(x)}
    interface = sys.modules["transformers.modeling_utils"].AttentionInterface
    found |= {("registry", name): id(x) for name, x in vars(interface).items()}
    for name, module in model.named_modules():
        hooks = (module._forward_hooks, module._forward_pre_hooks, module._forward_hooks_with_kwargs)
        found[name, "hooks"] = [list(x.values()) for x in hooks]
        # a recurrent state is the model's own, left by every call
        attributes = {key: x for key, x in vars(module).items() if key != "recurrent_states"}
        found[name, "attributes"] = {key: id(x) for key, x in attributes.items() if not isinstance(x, dict)}
        found[name, "training"] = module.training
    found |= {("parameter", name): (id(x), x._version) for name, x in model.named_parameters()}
    return found
