"""Fused passes of Mamba, which would hide its scan: they are switched off while capture watches."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .torch_functions import modules_of

if TYPE_CHECKING:
    from .capturing import Capture

# attributes of mamba_ssm's Mamba and Mamba2, also in eval mode: without them the layer goes on step by step
SWITCHES = ("use_fast_path", "use_mem_eff_path")
# functions of transformers, in training mode: None makes the caller go on step by step
FUSED = ("mamba_inner_fn", "mamba_split_conv1d_scan_combined", "mamba2_split_conv1d_scan_combined")


def switch_off(capture: Capture) -> None:
    """Make every module of the model take the path on which it calls its scan by name.

    Both paths compute the same numbers up to rounding; where a fused one was taken, those of the forward pass that is
    watched may differ in their last digits from the model's own.
    """
    for module in capture.model.modules():
        for name in SWITCHES:
            if getattr(module, name, None) is True:
                capture.patches.replace(module, name, False)
    for namespace in modules_of(capture.model):
        if namespace.__name__.startswith("transformers.models."):
            for name in FUSED:
                if name in vars(namespace):
                    capture.patches.replace(namespace, name, lambda *args, **kwargs: None)
