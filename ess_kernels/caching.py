"""`cached_property` without a lock: a lock that another thread holds at a `fork` is never released in the child."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING or sys.version_info >= (3, 12):
    from functools import cached_property  # noqa: TID251
else:

    class cached_property:
        """As Python 3.12 has it. In Python 3.11 all instances share one lock, so that their threads wait as well.

        Two threads that ask one instance for the first time may both compute the value, and one of them is kept.
        """

        def __init__(self, function):
            self.function = function
            self.__doc__ = function.__doc__

        def __set_name__(self, owner, name):
            self.name = name

        def __get__(self, instance, owner=None):
            if instance is None:
                return self
            # the attribute hides this descriptor from now on
            return instance.__dict__.setdefault(self.name, self.function(instance))


__all__ = ["cached_property"]
