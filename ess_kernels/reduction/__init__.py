"""Model-order reduction: how small the states of a mixer could be, with the error that each size costs.

`reduce` is the public call and `Reduced` its answer. `sweep.py` has the algorithm and its proof, `by_blocks.py` brings
an operator without a state to it, `balanced.py` is the textbook's alternative.
"""

from .reduced import Reduced
from .reducing import reduce

__all__ = ["Reduced", "reduce"]
