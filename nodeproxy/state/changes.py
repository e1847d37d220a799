"""What the last changes of the state touched, so that a reader drops of what it keeps only that.

The log is a ring of the last `_RING` epochs in the table `changes`.  Invariant: it never says less than what changed; a change
too large to tell, or one that has left the ring, is told as `everything`.
Why so short a log: it is part of the store, which must not grow by it, and a reader is told of every change.
"""

from __future__ import annotations

import struct
from typing import Any

import lmdb
import msgspec

_RING = 16
# A larger change drops about as much as all that a reader keeps.
MAX_NAMES = 1024

_EPOCH_KEY = b"epoch"
_EPOCH = struct.Struct(">Q")


class Touched(msgspec.Struct, omit_defaults=True):
    """Names that changes touched: resources that came, changed or went, and entries of indexes that led, or lead, to them.

    addresses, vips: "network/ip".  endpoints: keys of services whose endpoints, or one of them, changed.
    scopes: namespaces whose policies changed, "/" for the global ones.  everything: the names do not tell it all.
    """

    workloads: set[str] = msgspec.field(default_factory=set)
    services: set[str] = msgspec.field(default_factory=set)
    policies: set[str] = msgspec.field(default_factory=set)
    addresses: set[str] = msgspec.field(default_factory=set)
    vips: set[str] = msgspec.field(default_factory=set)
    endpoints: set[str] = msgspec.field(default_factory=set)
    scopes: set[str] = msgspec.field(default_factory=set)
    everything: bool = False

    def merge(self, other: Touched) -> None:
        """What `other` touched, too."""
        if self.everything or other.everything:
            self.tell_all()
            return
        for name in _SETS:
            mine: set[str] = getattr(self, name)
            mine |= getattr(other, name)
        self.bound()

    def bound(self) -> None:
        """Too many names become `everything`."""
        if sum(len(getattr(self, name)) for name in _SETS) > MAX_NAMES:
            self.tell_all()

    def tell_all(self) -> None:
        """The names do not tell it all."""
        for name in _SETS:
            setattr(self, name, set())
        self.everything = True

    def __bool__(self) -> bool:
        return self.everything or any(getattr(self, name) for name in _SETS)


class _Entry(msgspec.Struct):
    epoch: int
    touched: Touched


_SETS = tuple(name for name in Touched.__struct_fields__ if name != "everything")
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Entry).decode


def epoch_of(txn: lmdb.Transaction, tables: dict[str, Any]) -> int:
    """How many changes the state has seen."""
    raw = txn.get(_EPOCH_KEY, db=tables["about"])
    return 0 if raw is None else int(_EPOCH.unpack(raw)[0])


def record(txn: lmdb.Transaction, tables: dict[str, Any], touched: Touched) -> int:
    """Write down one change more; returns the new epoch."""
    epoch = epoch_of(txn, tables) + 1
    touched.bound()
    txn.put(_EPOCH_KEY, _EPOCH.pack(epoch), db=tables["about"])
    txn.put(_slot(epoch), _encode(_Entry(epoch, touched)), db=tables["changes"])
    return epoch


def touched_since(txn: lmdb.Transaction, tables: dict[str, Any], before: int, epoch: int) -> Touched:
    """What the changes after epoch `before`, up to `epoch`, the snapshot's own, touched."""
    touched = Touched(everything=not before <= epoch <= before + _RING)
    while not touched.everything and before < epoch:
        before += 1
        raw = txn.get(_slot(before), db=tables["changes"])
        entry = None if raw is None else _decode(raw)
        touched.merge(entry.touched if entry is not None and entry.epoch == before else Touched(everything=True))
    return touched


def _slot(epoch: int) -> bytes:
    return b"%d" % (epoch % _RING)
