"""Threads and `fork`: a forked process works on one thread.

`fork` copies a process's memory, and of its threads only the one that called it. Whatever kept the others - OpenMP's
team, a pool of workers - still counts on them in the copy, and waits for them for ever. NumPy starts threads when it is
imported, torch when it first computes, and nobody can ask OpenMP afterwards; so no fork is taken for a harmless one.
Processes that begin as a new program (`spawn`, `forkserver`, `subprocess`) start their own threads and are not limited.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

# PF_FORKNOEXEC of Linux: the process was forked and has not started another program since
_FORKED_ONLY = 0x40


def forked() -> bool:
    """Whether this process, or an ancestor that shares its memory, was forked: then it must not use other threads."""
    return _forked


def on_one_thread_if_forked(function: Callable[P, R]) -> Callable[P, R]:
    """`function`, during which torch stays on the caller's thread where the process was forked."""

    @functools.wraps(function)
    def careful(*args: P.args, **kwargs: P.kwargs) -> R:
        if not _forked:
            return function(*args, **kwargs)
        import torch

        before = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return function(*args, **kwargs)
        finally:
            torch.set_num_threads(before)

    return careful


def _forked_before_import() -> bool:
    """Whether the process was forked before this module was imported, when torch may already have had threads.

    A worker of multiprocessing's fork server is a copy too, but of a process that has only waited for orders.
    """
    if "torch" not in sys.modules or _started_by_fork_server():
        return False
    try:
        # the fields after the program's name, which stands in brackets and may hold anything
        fields = Path("/proc/self/stat").read_text(errors="replace").rpartition(")")[2].split()
        return bool(int(fields[6]) & _FORKED_ONLY)
    except (OSError, ValueError, IndexError):  # not Linux
        return False


def _started_by_fork_server() -> bool:
    multiprocessing = sys.modules.get("multiprocessing")
    return (
        multiprocessing is not None
        and multiprocessing.parent_process() is not None
        and multiprocessing.get_start_method(allow_none=True) == "forkserver"
    )


def _note_fork() -> None:
    global _forked
    _forked = True


_forked = _forked_before_import()
if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(after_in_child=_note_fork)
