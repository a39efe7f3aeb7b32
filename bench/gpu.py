"""Everything that must be known on a GPU, in one command: see `gpu_runs/run.py`, or `--help`.

PYTHONPATH=$PWD python3 bench/gpu.py --budget-seconds 540 --output DIR
"""

import sys

from gpu_runs.run import main

if __name__ == "__main__":
    sys.exit(main())
