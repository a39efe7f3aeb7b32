"""Races, addresses out of bounds and reads of unwritten memory in Triton kernels, found in Triton's interpreter.

    pytest tests/triton_kernels --triton-races
    pytest tests/triton_kernels -k staircase --triton-races --triton-orders reversed,shuffled

The interpreter runs the programs of a grid one after the other, and every statement of a program for all its lanes at
once, so that nothing of what is looked for shows in results. What is watched instead are the addresses: every load and
every store is compared with what the launch has done before.

These are faults, and fail the test:

    race      one lane of a program stores, and another loads or stores the same address with no `tl.debug_barrier()`
              between. "Another lane" is another position of the tensor, or any position of a tensor with fewer numbers
              than the program has threads, for these are replicated.
    programs  two programs of one launch touch an address, and one of them stores.
    order     results differ, in any bit, when the programs run in another order (only with `--triton-orders`).
    bounds    an address outside of the storages of all the launch's tensors.
    atomic    the kernel uses an atomic operation, of which nothing is known here: its kernel has not been watched.

These are remarks:

    same      a load and a store without a barrier at the same position of tensors of one shape: right as long as the
              compiler lays both out alike, which nothing guarantees.
    poison    a load of memory that nobody has written since `torch.empty`; harmless if nobody uses the number.

With one warp no barrier between warps is needed, but only `tl.debug_barrier()` makes the order of its lanes certain;
such findings say "(one warp)". What the compiler makes of layouts and shared memory is not seen: see `emulator`.
"""
