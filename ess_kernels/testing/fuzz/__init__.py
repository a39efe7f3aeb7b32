"""A fuzzer of counts and entropies: random hard operators on every backend, against an oracle with an error bar.

`case.py` is one input, `generate.py` (with `matrices.py`, `states.py`) makes it, `exact.py` and `oracle.py` say what is
right, `judge.py` compares, `shrink.py` and `code.py` make the smallest program of a failure, `run.py` goes round.
"""

from .report import Report
from .run import fuzz

__all__ = ["Report", "fuzz"]
