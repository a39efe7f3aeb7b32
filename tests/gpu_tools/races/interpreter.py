"""The functions of Triton's interpreter that are replaced by watched ones."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from triton.runtime.interpreter import GridExecutor, InterpreterBuilder

from .poison import poisoned_memory
from .watch import Watch

# its name up to Triton 3.6, and since
BARRIER = "create_barrier" if hasattr(InterpreterBuilder, "create_barrier") else "create_debug_barrier"
ATOMICS = ("create_atomic_cas", "create_atomic_rmw")
BUILDER = {
    name: getattr(InterpreterBuilder, name)
    for name in ("create_masked_load", "create_masked_store", "set_grid_dim", "set_grid_idx", BARRIER, *ATOMICS)
}
CALL = GridExecutor.__call__


def _size(pointers: Any) -> int:
    return max(1, pointers.get_element_ty().primitive_bitwidth // 8)


def _watched(watch: Watch) -> dict[str, Any]:
    """Methods of the builder, by name: what the interpreter does, and the watch is told."""

    def load(self: Any, pointers: Any, mask: Any, *rest: Any) -> Any:
        watch.access(pointers.data, mask.data, _size(pointers), storing=False)
        result = BUILDER["create_masked_load"](self, pointers, mask, *rest)
        watch.loaded(result.data, mask.data)
        return result

    def store(self: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        watch.access(pointers.data, mask.data, _size(pointers), storing=True)
        return BUILDER["create_masked_store"](self, pointers, value, mask, *rest)

    def barrier(self: Any) -> None:
        watch.barrier()

    def atomic(name: str) -> Any:
        def run(self: Any, *arguments: Any) -> Any:
            watch.atomic()
            return BUILDER[name](self, *arguments)

        return run

    def set_grid(self: Any, x: int, y: int, z: int) -> None:
        if watch.launch is not None:
            watch.launch.set_grid((x, y, z))
        BUILDER["set_grid_dim"](self, x, y, z)

    def set_program(self: Any, x: int, y: int, z: int) -> None:
        if watch.launch is not None:
            x, y, z = watch.launch.next_program(x, y, z)
        BUILDER["set_grid_idx"](self, x, y, z)

    methods = {
        "create_masked_load": load,
        "create_masked_store": store,
        "set_grid_dim": set_grid,
        "set_grid_idx": set_program,
        BARRIER: barrier,
    }
    return methods | {name: atomic(name) for name in ATOMICS}


@contextmanager
def watching(watch: Watch) -> Iterator[Watch]:
    """Inside, this watch, and no other, sees all launches, and memory is poisoned."""

    def call(self: Any, *arguments: Any, **options: Any) -> None:
        watch.run(lambda: CALL(self, *arguments, **options), self.fn.__name__, arguments, options)

    before, call_before = {name: getattr(InterpreterBuilder, name) for name in BUILDER}, GridExecutor.__call__
    try:
        for name, method in _watched(watch).items():
            setattr(InterpreterBuilder, name, method)
        GridExecutor.__call__ = call
        with poisoned_memory():
            yield watch
    finally:
        for name, method in before.items():
            setattr(InterpreterBuilder, name, method)
        GridExecutor.__call__ = call_before
