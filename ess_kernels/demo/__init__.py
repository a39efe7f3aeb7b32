"""The demo: an embedded byte-level language model with four mixers, measured on a text (`ess-kernels demo`).

`measure(text)` does the work and returns a `Report`; `load_model()` and `default_text()` are its parts.
"""

from ess_kernels.demo.measure import Report, default_text, load_model, measure

__all__ = ["Report", "default_text", "load_model", "measure"]
