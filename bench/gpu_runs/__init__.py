"""What `bench/gpu.py` runs on a GPU: correctness, ceilings, goals and peers; and the estimates of `bench/gpu_model.py`.

`run.py` leads, and starts `rehearse.py`, `compiling.py`, `checks.py` and `measure.py` in processes of their own; it and
what it imports use the standard library only. `bench/` must be importable, and so must `ess_kernels`.
"""
