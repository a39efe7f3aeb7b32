"""Gradients of functions of the singular values of `H_i`: entropy-ESS, the soft count, the nuclear norm.

A function of all singular values that does not care for their order has the gradient `U diag(slopes) V^T` with respect
to the matrix. That is well defined where singular values coincide, which is where the backward of a singular value
decomposition divides by zero. Values below `FLOOR` of the largest one count as zero: the slope of an entropy at zero is
infinite.

First and second derivatives are exact. A third one raises a RuntimeError where it needs singular values: autograd does
not know how a second derivative depends on the matrix.

`functions` has the functions, `spectral` their gradient, `roots`, `segments` and `recurrence` what a finite state
needs, `matrix` and `logdets` any other operator, and `values` what the metrics call.
"""

from .functions import Entropy, NuclearNorm, SoftCount, SpectralFunction
from .need import need_of_gradient
from .values import spectral_values

__all__ = ["Entropy", "NuclearNorm", "SoftCount", "SpectralFunction", "need_of_gradient", "spectral_values"]
