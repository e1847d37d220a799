"""pyroute2 without its database.

Its package imports all that it has, the database over sqlite3 among it, which nothing here uses.
So these two modules of it are there in name only, and the lab takes pyroute2's names from here.
"""

from __future__ import annotations

import sys
from types import ModuleType


class _NameOnly(ModuleType):
    """A module that has every name, as None."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


for _name in ("pyroute2.ndb.main", "pyroute2.ipdb"):
    sys.modules.setdefault(_name, _NameOnly(_name))

from pyroute2 import IPRoute  # noqa: E402 - after the two names
from pyroute2.netlink.exceptions import NetlinkError  # noqa: E402

__all__ = ["IPRoute", "NetlinkError"]
