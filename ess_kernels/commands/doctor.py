"""`ess-kernels doctor`: versions, backends, and why each is or is not in use."""

from __future__ import annotations

import argparse

from ess_kernels import _requirements
from ess_kernels.commands.terminal import say


def run(options: argparse.Namespace) -> int:
    from ess_kernels.config import show_config

    say(show_config())
    return 0 if _requirements.problem() is None else 1
