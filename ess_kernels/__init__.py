"""Effective state-size of causal sequence mixers, at every position of every head, exactly.

A causal sequence mixer is `y = T u` with `T` lower triangular. Its effective state-size (ESS) at position i measures
the rank of `H_i = T[i:, :i]`, the map from past inputs to future outputs ("Quantifying Memory Utilization with
Effective State-Size", ICML 2025).
"""

from typing import TYPE_CHECKING, Any, NoReturn

from . import processes as processes  # first: it looks at what had been imported before this package
from ._requirements import problem as _problem
from ._version import __version__
from .config import show_config
from .memory import memory_budget

if TYPE_CHECKING or _problem() is None:
    from . import aggregate, capture, operators
    from .analysis.analyze import analyze
    from .analysis.dataset.run import analyze_dataset
    from .analysis.regularizer import ESSRegularizer
    from .analysis.transitions import transition_distance
    from .bounds import BoundedEntropy, BoundedESS, bounded_entropy_ess, bounded_ess
    from .by_sequence import split
    from .companions import causal_ess, observable_ess, state_spectra, token_influence
    from .compressing import compress
    from .engine.certainty import Certificate, EntropyCertificate
    from .metrics import (
        SmallSpectra,
        entropy_ess,
        nuclear_norm,
        singular_values,
        small_spectra,
        soft_ess,
        tolerance_ess,
    )
    from .operators.compressed import Compressed
    from .randomized import RandomizedESS, randomized_ess
    from .reduction import Reduced, reduce

    if TYPE_CHECKING:
        from . import distributed

    def __getattr__(name: str) -> Any:
        # processes are few people's business: what talks to them is imported when it is first used
        if name == "distributed":
            from importlib import import_module

            return import_module(".distributed", __name__)
        raise AttributeError(f"module 'ess_kernels' has no attribute {name!r}")

else:

    def __getattr__(name: str) -> NoReturn:
        # the command line works without torch, to say what is missing; nothing else does
        if name in __all__:
            raise ImportError(f"ess_kernels.{name}: {_problem()}")
        raise AttributeError(f"module 'ess_kernels' has no attribute {name!r}")


__all__ = [
    "BoundedESS",
    "BoundedEntropy",
    "Certificate",
    "Compressed",
    "ESSRegularizer",
    "EntropyCertificate",
    "RandomizedESS",
    "Reduced",
    "SmallSpectra",
    "__version__",
    "aggregate",
    "analyze",
    "analyze_dataset",
    "bounded_entropy_ess",
    "bounded_ess",
    "capture",
    "causal_ess",
    "compress",
    "distributed",
    "entropy_ess",
    "memory_budget",
    "nuclear_norm",
    "observable_ess",
    "operators",
    "randomized_ess",
    "reduce",
    "show_config",
    "singular_values",
    "small_spectra",
    "soft_ess",
    "split",
    "state_spectra",
    "token_influence",
    "tolerance_ess",
    "transition_distance",
]
