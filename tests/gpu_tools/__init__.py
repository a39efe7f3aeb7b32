"""Tools for whoever writes GPU kernels without a GPU: they find what neither results nor Triton's interpreter show.

`races` watches the interpreter's loads and stores, `emulator` runs the compiled PTX on the CPU, thread by thread. Both
are options of pytest (`--triton-races`, `--ptx-emulator`), fail the tests in which they find a fault, and print what
they have found and seen at the end.
"""
