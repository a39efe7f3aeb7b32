"""The structures and functions of `csrc/include/`, in Python: nothing else knows how they lie in memory.

A kernel X takes two structures, `ess_run` and `ess_X_job`, which its header describes field by field. The sizes of all
structures are compared with the library's when it is opened (`wrong_size`).
"""

from __future__ import annotations

import ctypes
from typing import Any, ClassVar

# ESS_ABI_VERSION; a library of any other version is refused
VERSION = 6
# what arrays of kernels are aligned to, in bytes
LINE = 64

# error codes that the caller can do something about
WORKSPACE, MEMORY = 5, 7

_SIZE, _FLAG, _NUMBER, _ADDRESS = ctypes.c_int64, ctypes.c_int32, ctypes.c_double, ctypes.c_void_p


def _all(kind: Any, names: str) -> list[tuple[str, Any]]:
    return [(name, kind) for name in names.split()]


class Run(ctypes.Structure):
    """`ess_run`: how a kernel runs."""

    _fields_ = [*_all(_FLAG, "threads level"), ("workspace", _ADDRESS), ("workspace_bytes", _SIZE)]


class Tokens(ctypes.Structure):
    """`ess_tokens`: a recurrence where it lies in memory."""

    _fields_ = [
        *_all(_SIZE, "heads length states"),
        *(("read", _ADDRESS), ("read_stride", _SIZE), ("write", _ADDRESS), ("write_stride", _SIZE)),
        *(("gate", _ADDRESS), ("gate_stride", _SIZE), ("rate", _ADDRESS)),
        *(("read_scale", _ADDRESS), ("read_scale_stride", _SIZE)),
        *(("write_scale", _ADDRESS), ("write_scale_stride", _SIZE)),
        *(("lookup", _ADDRESS), ("lookup_stride", _SIZE), ("update", _ADDRESS), ("update_stride", _SIZE)),
        *_all(_ADDRESS, "read_unit write_unit"),
        *_all(_FLAG, "gate_shared gate_is_log reads_before lookup_decayed"),
    ]


class Quadrature(ctypes.Structure):
    """`ess_quadrature`: nodes, weights and errors."""

    _fields_ = [
        ("nodes", _SIZE),
        *_all(_ADDRESS, "t total_weight mixed_weight"),
        *_all(_NUMBER, "total_error mixed_error total_slope mixed_slope"),
    ]


class Recurrence(ctypes.Structure):
    """`ess_recurrence`: the parts of a recurrence's blocks."""

    _fields_ = [
        *_all(_SIZE, "heads blocks n c"),
        *_all(_FLAG, "transitions reserved"),
        *_all(_ADDRESS, "X Z Y Phi F Q norms"),
    ]


class Matrix(ctypes.Structure):
    """`ess_matrix`: dense operators."""

    _fields_ = [
        *_all(_SIZE, "heads length"),
        ("T", _ADDRESS),
        *_all(_SIZE, "row_stride head_stride"),
        ("scale", _ADDRESS),
        *_all(_FLAG, "part reserved"),
    ]


class Matrices(ctypes.Structure):
    """`ess_matrices`: a batch of small matrices."""

    _fields_ = [("data", _ADDRESS), *_all(_SIZE, "rows columns batch_stride row_stride column_stride")]


class Blur(ctypes.Structure):
    """`ess_blur`: relative widths that belong to the data."""

    _fields_ = [("width", _ADDRESS), ("span", _SIZE)]


# pointers to structures, which keep alive what they point to; those to arrays of numbers are plain addresses
_TOKENS, _PARTS = ("tokens", ctypes.POINTER(Tokens)), ("parts", ctypes.POINTER(Recurrence))
_QUADRATURE, _MATRIX = ("quadrature", ctypes.POINTER(Quadrature)), ("matrix", ctypes.POINTER(Matrix))


class Job(ctypes.Structure):
    """What a kernel is to do: `ess_X_job`, X being `kernel`.

    Whoever makes a job holds the arrays to which its addresses point; what nobody else holds goes to `alive`.
    """

    kernel: ClassVar[str]
    alive: object = None


class TokensSurvey(Job):
    kernel = "tokens_survey"
    _fields_ = [_TOKENS, *_all(_ADDRESS, "read_peak write_peak supported")]


class TokensLost(Job):
    kernel = "tokens_lost"
    _fields_ = [_TOKENS, ("span", _SIZE), ("lost", _ADDRESS)]


class RecurrenceParts(Job):
    kernel = "recurrence_parts"
    _fields_ = [_PARTS, _TOKENS, ("transition", _ADDRESS), ("transition_stride", _SIZE)]


class RecurrenceCounts(Job):
    kernel = "recurrence_counts"
    _fields_ = [
        *(_PARTS, _TOKENS),
        *_all(_SIZE, "length tolerances"),
        *_all(_ADDRESS, "tau wanted counts growth least"),
    ]


class RecurrenceObserveRoots(Job):
    kernel = "recurrence_observe_roots"
    _fields_ = [("made", RecurrenceParts), ("observe_roots", _ADDRESS)]


class RecurrenceUnsquaredCounts(Job):
    kernel = "recurrence_unsquared_counts"
    _fields_ = [("counts", RecurrenceCounts), *_all(_ADDRESS, "observe_roots outsides made")]


class RecurrenceRootProducts(Job):
    kernel = "recurrence_root_products"
    _fields_ = [("roots", RecurrenceObserveRoots), ("count", _SIZE), *_all(_ADDRESS, "heads positions products")]


class RecurrenceEntropy(Job):
    kernel = "recurrence_entropy"
    _fields_ = [
        *(_PARTS, _TOKENS),
        ("length", _SIZE),
        ("scale", _ADDRESS),
        _QUADRATURE,
        *_all(_ADDRESS, "wanted total mixed rounding unit"),
    ]


class LanesCounts(Job):
    kernel = "lanes_counts"
    _fields_ = [_TOKENS, ("tolerances", _SIZE), *_all(_ADDRESS, "tau wanted value growth least")]


class LanesEntropy(Job):
    kernel = "lanes_entropy"
    _fields_ = [_TOKENS, _QUADRATURE, *_all(_ADDRESS, "wanted cap ess bound total")]


class MatrixLargest(Job):
    kernel = "matrix_largest"
    _fields_ = [_MATRIX, ("largest", _ADDRESS)]


class MatrixNorm(Job):
    kernel = "matrix_norm"
    _fields_ = [_MATRIX, ("steps", _SIZE), *_all(_ADDRESS, "norm squares")]


class MatrixProducts(Job):
    kernel = "matrix_products"
    _fields_ = [_MATRIX, ("products", _ADDRESS)]


class MatrixStaircase(Job):
    kernel = "matrix_staircase"
    _fields_ = [
        *(_MATRIX, ("products", _ADDRESS)),
        ("items", _SIZE),
        *_all(_ADDRESS, "head shift"),
        *_all(_FLAG, "definite reserved"),
        *_all(_ADDRESS, "wanted value growth least"),
    ]


class AttentionRows(Job):
    kernel = "attention_rows"
    _fields_ = [
        *_all(_SIZE, "heads length size"),
        *_all(_ADDRESS, "q k sinks"),
        *_all(_NUMBER, "scale softcap"),
        *_all(_SIZE, "window begin end"),
        ("weights", _ADDRESS),
        ("row_stride", _SIZE),
    ]


class JudgeCounts(Job):
    kernel = "judge_counts"
    _fields_ = [
        *_all(_SIZE, "heads tolerances length"),
        *_all(_NUMBER, "eps sure tiny_row small_row blurred"),
        ("blur", Blur),
        *_all(_ADDRESS, "value growth least possible asked counts width doubtful number"),
    ]


class GroupWidths(Job):
    kernel = "group_widths"
    _fields_ = [
        *_all(_SIZE, "heads tolerances length group"),
        *_all(_FLAG, "typical reserved"),
        ("hopeless", _NUMBER),
        *_all(_ADDRESS, "asked doubtful width chosen"),
    ]


class CompareCounts(Job):
    kernel = "compare_counts"
    _fields_ = [
        *_all(_SIZE, "heads tolerances length group"),
        ("eps", _NUMBER),
        *_all(_ADDRESS, "value growth move"),
        ("blur", Blur),
        *_all(_ADDRESS, "counts width doubtful number"),
    ]


class JudgeEntropy(Job):
    kernel = "judge_entropy"
    _fields_ = [
        *_all(_SIZE, "heads length group"),
        _QUADRATURE,
        *_all(_ADDRESS, "total mixed rounding cap ess bound"),
    ]


class Spectra(Job):
    kernel = "spectra"
    _fields_ = [
        *_all(_FLAG, "element_bytes reserved"),
        ("batch", _SIZE),
        *_all(Matrices, "left right"),
        ("values", _ADDRESS),
        ("tolerances", _SIZE),
        *_all(_ADDRESS, "tau counts"),
    ]


JOBS: dict[str, type[Job]] = {job.kernel: job for job in Job.__subclasses__()}
STRUCTURES: dict[str, type[ctypes.Structure]] = {
    "ess_run": Run,
    "ess_tokens": Tokens,
    "ess_quadrature": Quadrature,
    "ess_recurrence": Recurrence,
    "ess_matrix": Matrix,
    "ess_matrices": Matrices,
    "ess_blur": Blur,
    **{f"ess_{kernel}_job": job for kernel, job in JOBS.items()},
}


def version(handle: ctypes.CDLL) -> int:
    """The version of a library: nothing else may be called before it is known to be `VERSION`."""
    _declare(handle, "ess_abi_version", ctypes.c_int32)
    return handle.ess_abi_version()


def declare(handle: ctypes.CDLL) -> None:
    """The signatures of all functions; ctypes would otherwise pass every number as a C int.

    Raises:
        AttributeError: the library has no function of a name.
    """
    doubles = ctypes.POINTER(ctypes.c_double)
    _declare(handle, "ess_build_info", ctypes.c_char_p)
    _declare(handle, "ess_level_name", ctypes.c_char_p, _FLAG)
    _declare(handle, "ess_num_threads", _FLAG)
    _declare(handle, "ess_size_of", _SIZE, ctypes.c_char_p)
    _declare(handle, "ess_error_string", ctypes.c_char_p, _FLAG)
    _declare(handle, "ess_positive_pivots", _FLAG, _SIZE, doubles, _SIZE, doubles, ctypes.POINTER(_SIZE))
    _declare(handle, "ess_matrix_products_size", _SIZE, _SIZE)
    _declare(handle, "ess_matrix_middle", _SIZE, _SIZE)
    _declare(handle, "ess_recurrence_outside_size", _SIZE, _SIZE, _SIZE)
    for kernel, job in JOBS.items():
        arguments = ctypes.POINTER(Run), ctypes.POINTER(job)
        _declare(handle, f"ess_{kernel}", _FLAG, *arguments)
        _declare(handle, f"ess_{kernel}_workspace", _SIZE, *arguments)


def wrong_size(handle: ctypes.CDLL) -> str | None:
    """The structure that is not as large here as it is in the library, in words; None if there is none."""
    for name, structure in STRUCTURES.items():
        size = handle.ess_size_of(name.encode())
        if size != ctypes.sizeof(structure):
            return f"{name} has {size} bytes, expected {ctypes.sizeof(structure)}"
    return None


def _declare(handle: ctypes.CDLL, name: str, result: Any, *arguments: Any) -> None:
    function = getattr(handle, name)
    function.restype, function.argtypes = result, list(arguments)
