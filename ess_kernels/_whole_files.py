"""Files that are there whole or not at all: an existing file stays until the new one is complete."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path

# the end of a temporary file's name: what mkstemp has drawn, the machine, the process and when it began
_OWNED = re.compile(r"\.(?P<host>[^.]+)\.(?P<pid>\d+)-(?P<start>\d+)\.tmp")


def write_whole(
    path: str | os.PathLike[str], write: Callable[[Path], None], *, durable: bool = False, replace: bool = True
) -> None:
    """Let `write` fill a temporary file beside `path`, then put it in the place of `path` in one step.

    Whatever interrupts `write`, also Ctrl-C, leaves `path` as it was and no temporary file behind. A symbolic link
    stays one, and its target is replaced. What is no regular file, a pipe or a device, is written to directly.

    Args:
        write: is given the temporary file's path, which has the suffix of `path` unless `durable`.
        durable: flush the file and its folder to disk, so that it is whole after a power cut too. The temporary file's
            name begins with a dot and says whose it is; `remove_leftovers` finds it where the process was killed.
        replace: whether a file that is there is replaced; otherwise it stays as it is, and nothing is raised.

    Raises:
        OSError: the folder does not exist or cannot be written to.
    """
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():
        write(target)
        return
    suffix = _owner() if durable else target.suffix
    handle, name = tempfile.mkstemp(prefix=f".{target.stem[:40]}.", suffix=suffix, dir=target.parent)
    os.close(handle)
    try:
        write(Path(name))
        os.chmod(name, _mode(target))
        if durable:
            _flush(name)
        if replace:
            os.replace(name, target)
        else:
            _put(name, target)
        if durable:
            _flush(target.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise


def remove_leftovers(folder: Path) -> None:
    """Removes temporary files of `write_whole(durable=True)` whose process was one of this machine, and has ended.

    Raises:
        OSError: the folder cannot be read.
    """
    for name in os.listdir(folder):
        owner = _OWNED.search(name)
        if owner is None or owner["host"] != _host():
            continue
        if _start_of(int(owner["pid"])) != int(owner["start"]):
            with contextlib.suppress(OSError):
                (folder / name).unlink()


def _owner() -> str:
    return f".{_host()}.{os.getpid()}-{_start_of(os.getpid())}.tmp"


def _host() -> str:
    return re.sub(r"[^\w-]", "_", socket.gethostname()) or "_"


def _start_of(pid: int) -> int:
    """When a process began, in the system's own unit, so that one that has its number now is told from it; 0 where
    that is not known. -1: there is no such process."""
    if os.name != "posix":
        return 0  # there, os.kill does what it says
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return -1
    except OSError:  # another user's
        pass
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        return -1 if fields[0] in "ZX" else int(fields[19])
    except (OSError, ValueError, IndexError):  # not Linux
        return 0


def _put(name: str, target: Path) -> None:
    """Gives the file its name unless there is one of that name already."""
    try:
        os.link(name, target)
    except FileExistsError:
        pass
    except OSError:  # a file system without links
        if not target.exists():
            os.replace(name, target)
            return
    os.unlink(name)


def _flush(path: str | os.PathLike[str]) -> None:
    """Has the system write a file, or the names in a folder, to disk."""
    if os.path.isdir(path) and os.name != "posix":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _mode(target: Path) -> int:
    """The permissions of the file that is replaced, or those that a new file gets; temporary files are private."""
    try:
        return stat.S_IMODE(target.stat().st_mode)
    except FileNotFoundError:
        mask = os.umask(0)
        os.umask(mask)
        return 0o666 & ~mask
