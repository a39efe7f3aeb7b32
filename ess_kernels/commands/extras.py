"""Optional packages that a command needs."""

from __future__ import annotations

import importlib.util

from ess_kernels.commands.errors import UserError

# what to install; all others come with an extra of this package
PACKAGES = {"transformers": "'ess-kernels[hf]'", "pyarrow": "pyarrow"}


def installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ValueError:  # sys.modules[module] is None: somebody hides it
        return False


def missing(module: str, purpose: str, package: str | None = None) -> str:
    """That a module is not installed, and how it is; `package`: by what, if not as usual."""
    package = package or PACKAGES.get(module, "'ess-kernels[cli]'")
    return f"{module} {purpose} and is not installed: pip install {package}"


def require(module: str, purpose: str, package: str | None = None) -> None:
    if not installed(module):
        raise UserError(missing(module, purpose, package))
