"""How large the tensors in a safetensors file are, by its header alone: the file is not mapped into memory.

The format is an 8-byte length, little endian, that many bytes of JSON, and the numbers. The JSON has for each tensor
its `dtype`, its `shape`, and where its numbers lie (https://github.com/huggingface/safetensors).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

from ess_kernels.commands.errors import UserError

MOST_HEADER_BYTES = 10**8  # the format's own limit
FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
# bytes of one number; all others have one byte or less
BYTES = {"F64": 8, "I64": 8, "U64": 8, "C64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}


def tensor_bytes(path: Path, float_bytes: int | None) -> int:
    """Bytes of all tensors in a file.

    Args:
        path: the file.
        float_bytes: what a floating-point number is to take; None: as many bytes as in the file.

    Raises:
        UserError: the file cannot be read, or is no safetensors file.
    """
    total = 0
    for kind, shape in _tensors(path):
        wanted = float_bytes if kind in FLOATS else None
        total += math.prod(shape) * (wanted or BYTES.get(kind, 1))
    return total


def _tensors(path: Path) -> Iterator[tuple[str, list[int]]]:
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= MOST_HEADER_BYTES:
                raise UserError(f"{path}: expected a safetensors file, which begins with the length of its header")
            header = json.loads(file.read(length))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: expected a safetensors file, whose header is JSON: {error}") from error
    if not isinstance(header, dict):
        raise UserError(f"{path}: expected a safetensors file, whose header is a JSON object")
    for name, tensor in header.items():
        if name == "__metadata__":
            continue
        kind, shape = (tensor.get("dtype"), tensor.get("shape")) if isinstance(tensor, dict) else (None, None)
        if not (
            isinstance(kind, str) and isinstance(shape, list) and all(type(size) is int and size >= 0 for size in shape)
        ):
            raise UserError(f"{path}: expected a safetensors file, whose header has dtype and shape of {name!r}")
        yield kind, shape
