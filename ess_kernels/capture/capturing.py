"""Seeing every mixer of a model while it runs, without changing a number of it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn

from . import functions, methods, projections, registry, torch_mode
from .call import MixerCall, Refused
from .patches import Patches
from .running import Running
from .torch_functions import use_torch_functions

Receive = Callable[[MixerCall], None]

# functions of Python modules are replaced, which all models share
ONE_AT_A_TIME = threading.RLock()

SEAMS = ("registry", "functions", "methods", "torch")


class Capture:
    """What the seams share while a model runs.

    Attributes:
        running: which module of the model is running.
        receive: called with every mixer's call, right after it.
        refused: by module name, why a call was not passed to `receive`.
        attention_mask: `[B, L]` of the batch, or None.
        rows, length: B and L of the batch; None where they are not known.
        batch_first: by module, whether the batch comes before the heads where sizes do not tell.
        patches: what is undone at the end.
    """

    def __init__(
        self,
        model: nn.Module,
        receive: Receive,
        patches: Patches,
        attention_mask: Tensor | None,
        shape: tuple[int, int] | None,
        batch_first: Mapping[str, bool],
    ):
        self.model = model
        self.running = Running(model, patches)
        self.receive = receive
        self.refused: dict[str, str] = {}
        self.attention_mask = attention_mask
        self.rows = None if shape is None else shape[0]
        self.length = None if shape is None else shape[1]
        self.batch_first = batch_first
        self.patches = patches
        self.paused = False
        self.thread = threading.get_ident()

    @property
    def watching(self) -> bool:
        """Whether a call is one of the forward pass.

        Others are our own, those of a backward pass that computes a mixer again, and those of another thread.
        """
        own = not self.paused and threading.get_ident() == self.thread
        return own and torch._C._current_graph_task_id() == -1

    def check_length(self, tokens: int) -> None:
        """`Refused` where a call has another number of tokens than the sequence."""
        if self.length is not None and tokens != self.length:
            raise Refused(f"{tokens} tokens where the sequence has {self.length}: a cache, or a part of it")

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Within it no seam looks: for calls of our own, and for what happens inside of a mixer that has been seen."""
        before, self.paused = self.paused, True
        try:
            yield
        finally:
            self.paused = before

    def note(self, module: nn.Module | None, make: Callable[[str], MixerCall]) -> None:
        """A mixer was called, by `module` or by the module that is running: `make(name)` gives the call, or refuses."""
        name = self.running.name_of(module)
        if name is None:  # of another model, which runs in a hook of this one
            return
        with self.pause(), torch.no_grad():
            try:
                call = make(name)
            except Refused as reason:
                self.refused.setdefault(name, str(reason))
                return
            except Exception as error:  # a call of an unexpected form must not end the model's forward pass
                self.refused.setdefault(name, f"{type(error).__name__}: {error}")
                return
            self.receive(call)


@contextmanager
def capturing(
    model: nn.Module,
    receive: Receive,
    *,
    attention_mask: Tensor | None = None,
    shape: tuple[int, int] | None = None,
    batch_first: Mapping[str, bool] | None = None,
    seams: tuple[str, ...] = SEAMS,
) -> Iterator[Capture]:
    """Call `receive` with every mixer's call (`MixerCall`) while the model runs within the `with` block.

    Nothing of the model's numbers changes, and at the end every function, method and hook is as it was before, also
    after an exception. Calls hold the layer's own tensors: what `receive` keeps of them stays in memory.

    Args:
        model: any torch module. It must not be compiled: compiled code does not pass by the seams.
        receive: called right after each mixer, without gradients.
        attention_mask: `[B, L]`, 1 for tokens and 0 for padding.
        shape: `(B, L)` of the batch; calls whose queries have another length than L are refused. None: any length.
        batch_first: what `rows_first` has found.
        seams: which of `"registry"`, `"functions"`, `"methods"` and `"torch"` look. An earlier one hides a later one
            that would see the same call.

    Yields:
        a `Capture`, whose `refused` says by module name which calls were not passed on, and why.
    """
    unknown = set(seams) - set(SEAMS)
    if unknown:
        raise ValueError(f"seams: expected some of {', '.join(SEAMS)}, got {sorted(unknown)[0]!r}")
    with ONE_AT_A_TIME, Patches() as patches:
        use_torch_functions(model, patches)
        capture = Capture(model, receive, patches, attention_mask, shape, batch_first or {})
        installers = {
            "registry": (registry.install,),
            "functions": (functions.install,),
            "methods": (methods.install, projections.install),
        }
        for seam in seams:
            for install in installers.get(seam, ()):
                install(capture)
        try:
            with torch_mode.TorchMode(capture) if "torch" in seams else nullcontext():
                yield capture
        finally:
            capture.paused = True  # whoever has kept one of its functions has the plain one
