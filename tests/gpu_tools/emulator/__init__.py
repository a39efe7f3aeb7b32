"""Runs compiled kernels on the CPU, every thread of them, and watches for races between threads.

    pytest tests/gpu_tools/test_several_warps.py --ptx-emulator
    pytest tests/triton_kernels/test_staircase_kernels.py -k "inertia and 8" --ptx-emulator --ptx-capability 80

Triton specialises and compiles each kernel as for a real card; in place of CUDA's driver stands an emulator of the PTX
that comes out. So layouts, shuffles, matrix instructions, shared memory and barriers are the compiler's own, of which
Triton's interpreter knows nothing. These are faults, and fail the test:

    race        threads of different warps touch an address, one of them stores, and no `bar.sync` is between.
    lanes       the same for two lanes of one warp without `bar.sync` or `bar.warp.sync` between: shuffles and matrix
                instructions do not order memory. Also lanes that store different numbers at one address.
    programs    two programs of a launch touch a global address, and one of them stores.
    bounds      a global access outside of all tensors of the launch, or a shared one outside of what was asked for.
    alignment   an address that is no multiple of the access's width: a fault on a card.
    barrier     a barrier that not all threads reach together.
    unwritten   shared memory that is read before it is written.

Programs run one after the other (the last one first with `--ptx-backwards`), threads of a program in lockstep, those
that are behind first. Approximate instructions are computed exactly and rounded, and a fused multiplication and
addition in 80 bits. It takes tens of microseconds an instruction, for all threads of a program together: small launches
only. An instruction that is not known raises NotImplementedError with its name.
"""
