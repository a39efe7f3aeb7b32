"""Certain bounds where exact answers would take too long or have no room."""

from .entropy import bounded_entropy_ess
from .results import BoundedEntropy, BoundedESS
from .tolerance import bounded_ess

__all__ = ["BoundedESS", "BoundedEntropy", "bounded_entropy_ess", "bounded_ess"]
