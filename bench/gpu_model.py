"""Estimates of what `gpu.py` measures, without a GPU: see `gpu_runs/model.py`, or `--help`.

python bench/gpu_model.py [--rows WORDS] [--output FOLDER]
"""

from gpu_runs.model import main

if __name__ == "__main__":
    main()
