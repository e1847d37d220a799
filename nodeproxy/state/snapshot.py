"""Reading LMDB's tables and indexes in one transaction.

Invariant: a key that can't be stored is one that is not there, and a look-up that LMDB fails is a StateError.  Knows nothing of
what is stored.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any, cast

import lmdb

from nodeproxy.errors import StateError
from nodeproxy.state.layout import MAX_KEY_BYTES


class Snapshot:
    """One transaction; a reader has it go on with the next."""

    def __init__(self, txn: lmdb.Transaction, tables: dict[str, Any]) -> None:
        self._txn = txn
        self._tables = tables
        self._cursors: dict[str, lmdb.Cursor] = {}

    def renew(self, txn: lmdb.Transaction, tables: dict[str, Any]) -> None:
        """Go on with another transaction of the same epoch: for the reader only."""
        self._txn = txn
        self._tables = tables
        self._cursors.clear()

    def forget(self) -> None:
        """Drop LMDB's handle; nothing but what is cached can be asked any more.  For the reader only."""
        self._cursors.clear()
        del self._txn

    def _get(self, table: str, key: bytes) -> bytes | None:
        """What the table has under `key`."""
        if not 0 < len(key) <= MAX_KEY_BYTES:
            return None
        try:
            return cast("bytes | None", self._txn.get(key, db=self._tables[table]))  # bytes: no buffers were asked for
        except lmdb.Error as exc:
            raise _unreadable(table, exc) from exc

    def _values(self, index: str, key: bytes, limit: int | None = None) -> list[bytes]:
        """What the index has under `key`, at most `limit`."""
        if not 0 < len(key) <= MAX_KEY_BYTES:
            return []
        try:
            cursor = self._cursor(index)
            return cast("list[bytes]", list(islice(cursor.iternext_dup(), limit))) if cursor.set_key(key) else []
        except lmdb.Error as exc:
            raise _unreadable(index, exc) from exc

    def _count(self, index: str, key: bytes) -> int:
        """How much the index has under `key`."""
        if not 0 < len(key) <= MAX_KEY_BYTES:
            return 0
        try:
            cursor = self._cursor(index)
            return int(cursor.count()) if cursor.set_key(key) else 0
        except lmdb.Error as exc:
            raise _unreadable(index, exc) from exc

    def _tails(self, index: str, head: bytes) -> list[str]:
        """What follows `head` in the keys of the index that begin so."""
        if len(head) > MAX_KEY_BYTES:
            return []
        try:
            cursor = self._cursor(index)
            found = []
            more = cursor.set_range(head)
            while more and (key := cast("bytes", cursor.key())).startswith(head):
                found.append(key[len(head) :].decode())
                more = cursor.next_nodup()
            return found
        except lmdb.Error as exc:
            raise _unreadable(index, exc) from exc

    def _cursor(self, index: str) -> lmdb.Cursor:
        cursor = self._cursors.get(index)
        if cursor is None:  # kept: opening one costs as much as the look-up
            cursor = self._cursors[index] = self._txn.cursor(self._tables[index])
        return cursor

    def _entries(self, table: str) -> int:
        """How much the table has in all."""
        return int(self._txn.stat(self._tables[table])["entries"])

    def _keys(self, table: str) -> Iterator[str]:
        """All keys of the table, in their order."""
        with self._txn.cursor(self._tables[table]) as cursor:
            yield from (key.decode() for key in cast("Iterator[bytes]", cursor.iternext(keys=True, values=False)))

    def _raw(self, table: str) -> Iterator[bytes]:
        """All values of the table, in the order of keys."""
        with self._txn.cursor(self._tables[table]) as cursor:
            yield from cast("Iterator[bytes]", cursor.iternext(keys=False, values=True))


def _unreadable(table: str, error: lmdb.Error) -> StateError:
    return StateError(f"can't read {table} in the state: {error}; restart `nodeproxy run`, which makes it anew")
