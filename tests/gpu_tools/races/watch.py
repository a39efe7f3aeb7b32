"""Watching launches: every access goes to the shadow of the storage that it touches, and conflicts become findings."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ..findings import Findings
from .places import Places
from .poison import poisoned
from .shadow import Access, Shadow

REMARKS = ("same", "poison")
ORDERS = ("natural", "reversed", "shuffled")


class Launch:
    """One launch of a kernel: its storages, the order of its programs, and which of them runs since when."""

    def __init__(self, kernel: str, threads: int, shadows: Iterable[Shadow], order: str) -> None:
        self.kernel, self.threads, self.order = kernel, threads, order
        self.shadows = sorted(shadows, key=lambda shadow: shadow.base)
        self.bases = np.array([shadow.base for shadow in self.shadows], np.int64)
        self.shapes: dict[tuple[int, ...], int] = {}
        self.grid = (1, 1, 1)
        self.numbers: list[int] = []
        self.epoch = self.start = 1

    def set_grid(self, grid: tuple[int, int, int]) -> None:
        self.grid = grid
        self.numbers = list(range(grid[0] * grid[1] * grid[2]))
        if self.order == "reversed":
            self.numbers.reverse()
        elif self.order == "shuffled":
            random.Random(0).shuffle(self.numbers)

    def next_program(self, x: int, y: int, z: int) -> tuple[int, int, int]:
        """Begins a program; which one, where in natural order it would be `(x, y, z)`."""
        self.epoch += 1
        self.start = self.epoch
        _, height, depth = self.grid
        number = self.numbers[(x * height + y) * depth + z]
        return number // (height * depth), number // depth % height, number % depth

    def marks(self, shape: tuple[int, ...], positions: np.ndarray) -> np.ndarray:
        """A number for every position of tensors of this shape; Triton's tensors have at most 2^20 positions."""
        return (self.shapes.setdefault(shape, len(self.shapes)) << 20 | positions).astype(np.int32)

    @property
    def warps(self) -> str:
        return "(one warp)" if self.threads == 32 else f"({self.threads // 32} warps)"


class Watch:
    """Everything that is found in the launches that go through `run`.

    Args:
        orders: further orders in which the programs of every launch are run, to compare the results.
    """

    def __init__(self, orders: Sequence[str] = ()) -> None:
        unknown = set(orders) - set(ORDERS)
        if unknown:
            raise ValueError(f"orders: expected some of {ORDERS}, got {sorted(unknown)}")
        self.orders = orders
        self.findings = Findings(REMARKS)
        self.places = Places()
        self.launch: Launch | None = None

    def report(self, kind: str, place: int, before: int, what: str, count: int = 1) -> None:
        assert self.launch is not None
        names = self.places.names
        self.findings.add(kind, self.launch.kernel, names[place], names[before], what, count)

    # --- accesses -----------------------------------------------------------------------------------------------------

    def access(self, pointers: np.ndarray, mask: np.ndarray, size: int, storing: bool) -> None:
        """A load or store of numbers of `size` bytes at the addresses `pointers` where the `mask` is set."""
        launch = self.launch
        if launch is None:
            return
        flat = pointers.reshape(-1)
        positions = np.arange(len(flat))
        if not mask.all():
            positions = np.nonzero(np.broadcast_to(mask, pointers.shape).reshape(-1))[0]
        if not len(positions):
            return
        place = self.places.running(launch.kernel)
        addresses, marks = flat[positions].astype(np.int64), launch.marks(pointers.shape, positions)
        replicated = len(flat) < launch.threads
        owners = np.searchsorted(launch.bases, addresses, "right") - 1
        for owner in (owners[0],) if (owners == owners[0]).all() else np.unique(owners):
            mine = owners == owner
            if owner < 0:
                self.report("bounds", place, 0, "an address before all tensors of the launch", int(mine.sum()))
            else:
                shadow = launch.shadows[owner]
                cells, own = self._cells(shadow, addresses[mine], marks[mine], place, size, storing)
                access = Access(cells, own, place, launch.epoch, launch.start, replicated)
                for kind, before, what, count in shadow.store(access) if storing else shadow.load(access):
                    self.report(kind, place, before, what if kind == "programs" else f"{what} {launch.warps}", count)

    def _cells(
        self, shadow: Shadow, addresses: np.ndarray, marks: np.ndarray, place: int, size: int, storing: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """The cells of a storage that are touched, with their marks; what lies behind its end is reported."""
        beyond = addresses + (size - shadow.base - shadow.size)
        outside = beyond > 0
        if outside.any():
            did = "stores" if storing else "loads"
            what = f"{did} {int(beyond.max())} bytes behind the end of a tensor's storage"
            self.report("bounds", place, 0, what, int(outside.sum()))
            addresses, marks = addresses[~outside], marks[~outside]
        cells = (addresses - shadow.base) // shadow.grain
        if size > shadow.grain:
            cells = (cells[:, None] + np.arange(size // shadow.grain)).reshape(-1)
            marks = marks.repeat(size // shadow.grain)
        return cells, marks

    def loaded(self, values: np.ndarray, mask: np.ndarray) -> None:
        """The numbers that a load has brought."""
        if self.launch is None:
            return
        found = poisoned(values, mask)
        if found:
            place = self.places.running(self.launch.kernel)
            self.report("poison", place, 0, "loads memory that nobody has written", found)

    def barrier(self) -> None:
        if self.launch is not None:
            self.launch.epoch += 1

    def atomic(self) -> None:
        if self.launch is not None:
            self.report("atomic", self.places.running(self.launch.kernel), 0, "an atomic operation is not watched")

    # --- launches -----------------------------------------------------------------------------------------------------

    def run(self, call: Callable[[], None], kernel: str, arguments: Iterable[Any], options: Mapping[str, Any]) -> None:
        """Runs a launch, `call`, once for each order, and leaves the results of the natural one."""
        tensors = [x for x in (*arguments, *options.values()) if isinstance(x, torch.Tensor) and x.numel()]
        threads = 32 * int(options.get("num_warps", 4))
        self.findings.launches[kernel] += 1
        storages = list({x.untyped_storage().data_ptr(): x.untyped_storage() for x in tensors}.values())
        before = [storage.clone() for storage in storages] if self.orders else []
        self._once(call, kernel, threads, tensors, "natural")
        results = [storage.clone() for storage in storages] if self.orders else []
        for order in self.orders:
            _copy(before, storages)
            self._once(call, kernel, threads, tensors, order)
            different = sum(int((_bytes(x) != _bytes(y)).sum()) for x, y in zip(storages, results))
            if different:
                what = f"programs in {order} order: results differ"
                self.findings.add("order", kernel, "launch", "", what, different)
        _copy(results, storages)

    def _once(
        self, call: Callable[[], None], kernel: str, threads: int, tensors: list[torch.Tensor], order: str
    ) -> None:
        grains: dict[int, int] = {}
        for x in tensors:
            base = x.untyped_storage().data_ptr()
            grains[base] = min(x.element_size(), grains.get(base, 8))
        sizes = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in tensors}
        shadows = [Shadow(base, sizes[base], grain) for base, grain in grains.items()]
        self.launch = Launch(kernel, threads, shadows, order)
        try:
            call()
        finally:
            self.launch = None


def _bytes(storage: torch.UntypedStorage) -> torch.Tensor:
    return torch.tensor([], dtype=torch.uint8).set_(storage)


def _copy(sources: Iterable[torch.UntypedStorage], targets: Iterable[torch.UntypedStorage]) -> None:
    for source, target in zip(sources, targets):
        target.copy_(source)
