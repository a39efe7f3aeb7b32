"""Files that a command writes: whether it can, before any work, and the writing itself."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from ess_kernels._whole_files import write_whole
from ess_kernels.commands.errors import UserError


def check_distinct(files: dict[str, Path | None]) -> None:
    """`UserError` where one file would be written over another; files by the options that name them."""
    named = [(option, path) for option, path in files.items() if path is not None and str(path) != "-"]
    for i, (option, path) in enumerate(named):
        for other, same in named[:i]:
            if _same_file(path, same):
                raise UserError(f"{option} {path}: expected another file than that of {other}")


def _same_file(a: Path, b: Path) -> bool:
    try:
        return a.samefile(b)
    except OSError:  # one of them does not exist yet
        return os.path.realpath(a) == os.path.realpath(b)


def check_writable(option: str, path: Path) -> None:
    """`UserError` if the file cannot be written: it is opened for that, and is afterwards as it was."""
    try:
        if path.is_dir():
            raise UserError(f"{option} {path}: is a directory")
        if not path.parent.is_dir():
            raise UserError(f"{option} {path}: there is no directory {path.parent}")
        new = not path.exists()
        if not new and not path.is_file():
            return  # a pipe or a device: to open it may already be to use it
        with path.open("ab"):
            pass
        if new:
            os.unlink(os.path.realpath(path))
    except OSError as error:
        raise UserError(f"{option} {path}: {error.strerror or error}") from error


def picture(path: Path) -> Path:
    """The file that matplotlib will write."""
    from matplotlib.backend_bases import FigureCanvasBase

    if not path.suffix:
        return path.with_name(f"{path.name.rstrip('.')}.png") if path.name else path
    kinds = FigureCanvasBase.get_supported_filetypes()
    if path.suffix[1:].lower() not in kinds:
        raise UserError(
            f"--plot {path}: expected a file that ends in {', '.join(f'.{kind}' for kind in sorted(kinds))}"
        )
    return path


def write(path: Path, fill: Callable[[Path], object]) -> None:
    """Lets `fill` write a file, which is there whole or not at all.

    Raises:
        UserError: it cannot be written.
    """

    def fill_it(temporary: Path) -> None:
        fill(temporary)

    try:
        write_whole(path, fill_it)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from error
