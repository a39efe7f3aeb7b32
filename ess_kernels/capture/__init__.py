"""From a model's forward pass to the operators of its mixers, verified.

While a model runs, a *seam* sees each call of a mixer: the attention interface of transformers (`registry`), functions
that models call by name (`functions`), methods and modules (`methods`), and torch's own functions (`torch_mode`). What
a seam has seen is a `MixerCall`; `verify` makes the operator of it and compares `T u` with what the model passed on.
`mixing` finds the modules that mix over time by trying them, so that none is left out without a word.
"""

from .adapters import unwrapped
from .batch_axis import rows_first
from .call import MixerCall, Refused
from .capturing import SEAMS, capturing
from .mixing import Mixing, MixingModule, mixing_modules
from .torch_functions import torch_functions
from .verify import Verified, verify

__all__ = [
    "SEAMS",
    "MixerCall",
    "Mixing",
    "MixingModule",
    "Refused",
    "Verified",
    "capturing",
    "mixing_modules",
    "rows_first",
    "torch_functions",
    "unwrapped",
    "verify",
]
