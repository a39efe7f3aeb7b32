"""Which module of a model is running: a stack kept by hooks."""

from __future__ import annotations

from typing import Any

from torch import nn

from .patches import Patches


def _is_plain(module: nn.Module) -> bool:
    """Whether a module is a single layer of torch, such as a linear one: what it calls is its caller's."""
    return type(module).__module__.startswith("torch.nn.modules") and not any(True for _ in module.children())


class Running:
    """The modules that are running, innermost last; without torch's own layers, for every hook costs time."""

    def __init__(self, model: nn.Module, patches: Patches):
        self.names = {id(module): name for name, module in model.named_modules()}
        self.stack: list[nn.Module] = []
        for module in model.modules():
            if _is_plain(module):
                continue
            patches.hook(module.register_forward_pre_hook(self._enter))
            # also called where forward raises; it returns None, because anything else would replace the output
            patches.hook(module.register_forward_hook(self._leave, always_call=True))

    def _enter(self, module: nn.Module, args: Any) -> None:
        self.stack.append(module)

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        # an exception between the two hooks of an inner module may have left it on the stack
        while self.stack and self.stack.pop() is not module:
            pass

    def name_of(self, module: nn.Module | None) -> str | None:
        """The module's name, or without a module that of the innermost running one; None for one of another model."""
        if module is not None:
            return self.names.get(id(module))
        return self.names[id(self.stack[-1])] if self.stack else ""
