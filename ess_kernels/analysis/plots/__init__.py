"""Pictures of ESS. matplotlib is imported when one is drawn, and only its figure objects: no global backend changes."""

from .curves import CAP_COLOUR, ENTROPY_COLOUR, TOLERANCE_COLOURS, Curves, plot_ess

__all__ = ["CAP_COLOUR", "ENTROPY_COLOUR", "TOLERANCE_COLOURS", "Curves", "plot_ess"]
