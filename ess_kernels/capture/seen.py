"""What submodules return and receive, for mixers that no function has."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from .call import MixerCall, Refused

if TYPE_CHECKING:
    from .capturing import Capture


class Seen:
    """Tensors that submodules returned or received in the call of a module that is running."""

    def __init__(self, capture: Capture):
        self.capture = capture
        self._tensors: dict[str, Tensor] = {}

    def outputs_of(self, module: nn.Module, *names: str) -> None:
        for name in names:

            def after(_: nn.Module, args: Any, output: Tensor, name: str = name) -> None:
                self._tensors[name] = output

            self.capture.patches.hook(module.get_submodule(name).register_forward_hook(after))

    def input_of(self, module: nn.Module, name: str, called: str) -> None:
        def before(_: nn.Module, args: Any) -> None:
            self._tensors[called] = args[0]

        self.capture.patches.hook(module.get_submodule(name).register_forward_pre_hook(before))

    def take(self, name: str) -> Tensor:
        """The tensor, once; `Refused` where the module has not made it."""
        if name not in self._tensors:
            raise Refused(f"{name} was not called: a step with a cache, or a kernel that does without it")
        return self._tensors.pop(name)

    def before(self, module: nn.Module, name: str, make: Callable[[str, Tensor], MixerCall]) -> None:
        """Note the module's call when the submodule `name` receives what the recurrence passes on."""

        def end(_: nn.Module, args: Any) -> None:
            if self.capture.watching:
                self.capture.note(module, lambda of_module: make(of_module, args[0]))
            self._tensors.clear()

        self.capture.patches.hook(module.get_submodule(name).register_forward_pre_hook(end))
