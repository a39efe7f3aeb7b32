"""What tests of operators and backends need: a case that every family inherits, a comparison, and a fuzzer.

`python -m ess_kernels.testing fuzz --minutes N` runs the fuzzer (`ess_kernels.testing.fuzz`).
"""

from .closeness import assert_close
from .operator_case import OperatorTestCase
from .upstream import upstream_function

__all__ = ["OperatorTestCase", "assert_close", "upstream_function"]
