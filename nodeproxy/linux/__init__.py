"""The kernel's interfaces that are not eBPF: namespaces, routes, sockets, cgroups.

pyroute2's package imports all that it has, its database over sqlite3 among it, which nothing here uses and each agent would pay
2 MB for.  So these two modules of it are there in name only.
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
