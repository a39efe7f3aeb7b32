"""What the package cannot do without: whether torch and numpy are there and can be imported."""

from __future__ import annotations

import functools
import importlib

REQUIRED = ("torch", "numpy")


@functools.cache
def missing() -> dict[str, str]:
    """For each required package that cannot be imported, why, in a few words."""
    reasons = {name: _why_not(name) for name in REQUIRED}
    return {name: reason for name, reason in reasons.items() if reason}


def problem() -> str | None:
    """One line that says what is missing and what to do, or None."""
    lines = [f"{name} is needed and {reason}" for name, reason in missing().items()]
    return "; ".join(lines) or None


def _why_not(name: str) -> str:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name == name:
            return f"not installed: pip install {name}"
        return f"cannot be imported: {error}"
    except Exception as error:  # an installation that is broken raises anything
        return f"cannot be imported: {type(error).__name__}: {error}"
    return ""
