"""Pictures of ESS. matplotlib is imported when one is drawn, and only its figure objects: no global backend changes."""

from .colours import CAP_COLOUR, ENTROPY_COLOUR, TOLERANCE_COLOURS
from .curves import Curves, plot_ess
from .delimiters import plot_delimiters
from .draw import KINDS, draw
from .heads import plot_heads
from .heatmap import plot_heatmap
from .overview import plot_overview
from .position import plot_position
from .spectra import plot_spectra
from .training import plot_training
from .utilisation import plot_utilisation

__all__ = [
    "CAP_COLOUR",
    "ENTROPY_COLOUR",
    "KINDS",
    "TOLERANCE_COLOURS",
    "Curves",
    "draw",
    "plot_delimiters",
    "plot_ess",
    "plot_heads",
    "plot_heatmap",
    "plot_overview",
    "plot_position",
    "plot_spectra",
    "plot_training",
    "plot_utilisation",
]
