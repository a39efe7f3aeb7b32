"""Keeps transformers and the hub's library silent, and without a connection."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

SETTINGS = ("HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "HF_HUB_DISABLE_UPDATE_CHECK")


@contextmanager
def hugging_face(download: bool) -> Iterator[None]:
    """Within it, no request leaves this machine unless `download`, and neither bars nor reports are printed.

    The hub's library reads environment variables once, when it is imported: its constants are set for what is imported
    already, and the variables for libraries and processes that come later. Everything is as before afterwards.
    """
    from huggingface_hub import constants
    from transformers.utils import logging

    names = [name for name in SETTINGS if not (download and name == "HF_HUB_OFFLINE")]
    variables = {name: os.environ.get(name) for name in names}
    found = {name: getattr(constants, name) for name in names if hasattr(constants, name)}
    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    try:
        for name in names:
            os.environ[name] = "1"
        for name in found:
            setattr(constants, name, True)
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        yield
    finally:
        if bar:
            logging.enable_progress_bar()
        logging.set_verbosity(level)
        for name, value in found.items():
            setattr(constants, name, value)
        for name, text in variables.items():
            if text is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = text
