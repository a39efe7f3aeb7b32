"""Operators of which every process of a group holds a part: tokens of a recurrence, or heads of an attention.

`sequence_parallel` makes one operator of the slices that processes have of a long sequence, `gather` brings their
answers together, and `to_heads` exchanges tokens for heads. Heads and samples on different processes need nothing of
this: local tensors make local operators, and DTensors too (`dtensors`). Whatever fails on one process raises
`DistributedError` on all of them.

The package is imported at its first use, `ess_kernels.distributed`; it starts no process and makes no group.
"""

from .agreement import DistributedError
from .exchange import gather, to_heads
from .sequence_parallel import SequenceParallel, sequence_parallel

__all__ = ["DistributedError", "SequenceParallel", "gather", "sequence_parallel", "to_heads"]
