"""`python -m ess_kernels`: the command line, where its script is not on the path."""

import sys

from ess_kernels.cli import main

if __name__ == "__main__":
    sys.exit(main())
