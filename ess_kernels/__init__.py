"""Effective state-size of causal sequence mixers, at every position of every head, exactly.

A causal sequence mixer is `y = T u` with `T` lower triangular. Its effective state-size (ESS) at position i measures
the rank of `H_i = T[i:, :i]`, the map from past inputs to future outputs ("Quantifying Memory Utilization with
Effective State-Size", ICML 2025).
"""

from . import aggregate, operators
from ._version import __version__
from .config import show_config
from .engine.certainty import Certificate
from .metrics import SmallSpectra, entropy_ess, singular_values, small_spectra, tolerance_ess
from .randomized import RandomizedESS, randomized_ess

__all__ = [
    "Certificate",
    "RandomizedESS",
    "SmallSpectra",
    "__version__",
    "aggregate",
    "entropy_ess",
    "operators",
    "randomized_ess",
    "show_config",
    "singular_values",
    "small_spectra",
    "tolerance_ess",
]
