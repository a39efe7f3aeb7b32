"""A run's directory: `_run.json`, finished parts, and what killed runs have left.

Readers of Parquet data sets take no notice of names that begin with `_` or `.`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ess_kernels._whole_files import remove_leftovers, write_whole
from ess_kernels.analysis.analyze import versions

from . import optional
from .errors import RunRefused
from .inputs import Shard, shards_of
from .settings import Settings

NAME = "_run.json"
SCHEMA = "ess-kernels/run/1"  # changes when a field changes its meaning or goes away
RUN_KEY, SHARD_KEY = b"ess_kernels.run", b"ess_kernels.shard"


@dataclass(frozen=True)
class Run:
    """One run: its directory, what it asks, and of which shards.

    Attributes:
        out: the directory.
        settings: what is asked.
        versions: of the packages that have a part in the numbers.
        shards: all of them, in order.
        id: a hash of the settings, the versions and the inputs' names, which every part carries.
    """

    out: Path
    settings: Settings
    versions: Mapping[str, str]
    shards: Sequence[Shard]
    id: str

    @classmethod
    def of(cls, out: Path, settings: Settings, versions: Mapping[str, str], shards: Sequence[Shard]) -> Run:
        about = [settings.to_json(), dict(versions), [shard.name for shard in shards]]
        text = json.dumps(about, sort_keys=True)
        return cls(out, settings, versions, shards, hashlib.sha256(text.encode()).hexdigest())

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "settings": self.settings.to_json(),
            "versions": dict(self.versions),
            "inputs": [shard.to_json() for shard in self.shards],
        }

    def part(self, shard: Shard) -> Path:
        """Where the part of a shard is, or will be."""
        return self.out / f"part-{shard.number:05d}.parquet"

    def is_done(self, shard: Shard) -> bool:
        """Whether the part is there, and was made of this content of the shard by this run."""
        return self._origin(shard) == (self.id, shard.sha256)

    def _origin(self, shard: Shard) -> tuple[str, str] | None:
        """The run and the shard's checksum that are noted in the part; None where there is no part."""
        arrow, parquet = optional.pyarrow()
        try:
            notes = parquet.read_schema(self.part(shard)).metadata or {}
        except (OSError, arrow.ArrowInvalid):
            return None
        return notes.get(RUN_KEY, b"").decode(), notes.get(SHARD_KEY, b"").decode()


def find_run(out: Path, settings: Settings, paths: list[Path], restart: bool) -> Run:
    """The run of these settings and files into `out`, after a look at what is there. Nothing is written.

    Raises:
        RunRefused: the directory holds another run, or files that are of no run.
    """
    before = None if restart else read(out)
    if not (out / NAME).exists() and (strange := _strange(out)):
        raise RunRefused(f"out: {out} holds files of no run, such as {strange}: expected a new or empty directory")
    known = {} if before is None else {str(about.get("name")): about for about in before["inputs"]}
    run = Run.of(out, settings, versions(), shards_of(paths, known))
    if before is not None and (different := differences(before, run)):
        raise RunRefused(
            f"out: {out} holds another run: {'; '.join(different)}. Give another directory, or restart (which deletes "
            "what is there)"
        )
    return run


def read(out: Path) -> dict[str, Any] | None:
    """`_run.json` of a directory; None where there is none.

    Raises:
        RunRefused: it cannot be read, or is something else.
    """
    path = out / NAME
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise RunRefused(f"out: {path} cannot be read: {error}") from error
    fields = {"settings": dict, "versions": dict, "inputs": list}
    if not isinstance(found, dict) or found.get("schema") != SCHEMA:
        raise RunRefused(f"out: {path} is of another version of this package, or no run's")
    if not all(isinstance(found.get(name), kind) for name, kind in fields.items()):
        raise RunRefused(f"out: {path} is damaged")
    if not all(isinstance(about, dict) for about in found["inputs"]):
        raise RunRefused(f"out: {path} is damaged")
    return found


def differences(before: Mapping[str, Any], run: Run) -> list[str]:
    """What differs between a run that was and one that is to be, in words: `atol was [0.1] and is [0.01]`.

    A shard with another content than before is a difference if its part is finished; without a part, it is the shard
    that could not be read then.
    """
    now = run.to_json()
    found = []
    for group in ("settings", "versions"):
        for name in sorted({*before[group], *now[group]}):
            was, is_now = before[group].get(name), now[group].get(name)
            if was != is_now:
                found.append(f"{name} was {_short(was)} and is {_short(is_now)}")
    names_before = [about.get("name") for about in before["inputs"]]
    names = [shard.name for shard in run.shards]
    for text, missing in (("no longer there", set(names_before) - set(names)), ("new", set(names) - set(names_before))):
        if missing:
            found.append(f"inputs: {len(missing)} {text}, such as {sorted(map(str, missing))[0]}")
    checksums = {about.get("name"): about.get("sha256") for about in before["inputs"]}
    for shard in run.shards:
        if checksums.get(shard.name, shard.sha256) != shard.sha256 and run.part(shard).exists():
            found.append(f"input {shard.name} has changed, and its part is finished")
    return found


def claim(run: Run, restart: bool) -> None:
    """Makes the directory and `_run.json`, and removes what killed runs of this machine have left.

    Raises:
        RunRefused: another process has begun another run there meanwhile.
        OSError: it cannot be written to.
    """
    run.out.mkdir(parents=True, exist_ok=True)
    if restart and (run.out / NAME).exists():
        for part in run.out.glob("part-*.parquet"):
            part.unlink(missing_ok=True)
        (run.out / NAME).unlink(missing_ok=True)  # last: whoever is ended before has a run's directory still
    clean(run.out)
    path = run.out / NAME
    text = json.dumps(run.to_json(), indent=1) + "\n"
    before = read(run.out)
    if before is None:
        write_whole(path, lambda temporary: _write(temporary, text), durable=True, replace=False)
        before = read(run.out) or {}
    if different := differences(before, run):  # of a process that began at the same time
        raise RunRefused(f"out: {run.out} holds another run: {'; '.join(different)}")
    if before != json.loads(text):  # a shard that could not be read before, or files with another time
        write_whole(path, lambda temporary: _write(temporary, text), durable=True)


def clean(out: Path) -> None:
    """Removes temporary files of processes of this machine that live no more."""
    with contextlib.suppress(FileNotFoundError):
        remove_leftovers(out)


def check_writable(out: Path) -> None:
    """`OSError` unless files can be made in the directory, or it can be made."""
    there = out
    while not there.exists():
        there = there.parent
    if not there.is_dir():
        raise NotADirectoryError(f"{there} is no directory")
    if not os.access(there, os.W_OK | os.X_OK):
        raise PermissionError(f"{there} cannot be written to")


def _strange(out: Path) -> str | None:
    """A file in the directory that is no temporary one; None where there is none."""
    with contextlib.suppress(FileNotFoundError):
        return next((name for name in sorted(os.listdir(out)) if not name.startswith(".")), None)
    return None


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 120 else f"{text[:117]}..."
