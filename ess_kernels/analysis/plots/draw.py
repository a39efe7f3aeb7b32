"""One door to all pictures, by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .delimiters import plot_delimiters
from .heads import plot_heads
from .heatmap import plot_heatmap
from .position import plot_position
from .training import plot_training
from .utilisation import plot_utilisation

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_PICTURES: dict[str, Any] = {
    "heatmap": plot_heatmap,
    "position": plot_position,
    "utilisation": plot_utilisation,
    "heads": plot_heads,
    "delimiters": plot_delimiters,
    "training": plot_training,
}
KINDS = tuple(_PICTURES)


def draw(analysis: Any, kind: str, ax: Axes | None = None, **options: Any) -> Axes:
    """Draw a picture of an analysis.

    Args:
        analysis: an `Analysis`; for `"delimiters"` also analyses by separator, for `"training"` pairs of a step and an
            analysis.
        kind: a name in `KINDS`.
        ax: where to draw; None makes a figure, `draw(...).get_figure()`, tied to no window.
        **options: of the function that draws it: `plot_heatmap`, `plot_position`, `plot_utilisation`, `plot_heads`,
            `plot_delimiters`, `plot_training`.

    Returns:
        The axes drawn on.

    Raises:
        ValueError: a name that there is not; or `"spectra"`, for which an analysis holds too little.
    """
    if kind == "spectra":
        raise ValueError(
            "kind: 'spectra' needs an operator, and an analysis holds none: call "
            "ess_kernels.analysis.plots.plot_spectra(op, positions)"
        )
    if kind not in _PICTURES:
        raise ValueError(f"kind: expected one of {', '.join(KINDS)}, got {kind!r}")
    return _PICTURES[kind](analysis, ax, **options)
