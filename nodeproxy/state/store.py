"""Writing the state: deltas and whole states in, one transaction each.

Invariants: one writer for a directory; a transaction applies whole or not at all; what did not change is not written, and if
nothing did, the epoch stays; what a change touched is told with it (`changes`), so that readers keep the rest of their caches.
The store is a cache of the source that feeds it, kept so that a restarted agent has the last known state.  So an environment
that is damaged or of another version is made anew, empty, and `rebuilt` says why: the source will fill it.
Knows nothing of where deltas come from.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, cast

import lmdb
import msgspec

from nodeproxy.errors import ConfigError, StateError, UnstorableError
from nodeproxy.model.delta import Delta, Everything
from nodeproxy.state.changes import MAX_NAMES, Touched, epoch_of, record
from nodeproxy.state.layout import (
    ABSENT,
    DATA_FILE,
    MAP_SIZE_BYTES,
    MAX_KEY_BYTES,
    PARTIAL,
    PRESENT,
    SCHEMA,
    Environment,
    acquire,
    check_unopened,
    check_whole,
    encode,
)
from nodeproxy.state.reader import StateReader
from nodeproxy.state.resources import POLICIES, SERVICES, WORKLOADS, Table

_LOCK_FILE = "writer.lock"
_END: tuple[None, bytes] = (None, b"")
# LMDB keeps the memory of the pages that a transaction wrote for the next ones.  An entry may have cost one, of 4 KiB: after more
# entries than these the memory is given back.
_LARGE = 4096
_TABLES = (WORKLOADS, SERVICES, POLICIES)

Meta = Mapping[str, bytes | None]
Keys = Mapping[str, Container[str]]


class StateWriter:
    """The only writer of the state in a directory.

    rebuilt: why what was there before had to be thrown away, "" if it was not.
    """

    def __init__(
        self,
        path: Path | str,
        map_size_bytes: int = MAP_SIZE_BYTES,
        *,
        lent: bool = False,
        before_commit: Callable[[Touched], None] = lambda touched: None,
    ) -> None:
        """Raises StateError if another writer is there or the directory can't be used.

        lent: by the writer in the parent process, which made the store, holds the lock, and writes nothing meanwhile.
        before_commit: told what a change touches, before any reader can see it; what it raises undoes the change.
        """
        self.path = Path(path)
        self.before_commit = before_commit
        self._lock: IO[str] | None = None
        # Before the lock: closing the lock's file once more would drop the lock that this process has (fcntl(2), record locks).
        check_unopened(self.path)
        self.rebuilt = ""
        if lent:
            self._environment = _open(self.path, map_size_bytes=0)  # 0: as large as it is
            self.see_lent()
            return
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = _lock(self.path)
        except OSError as exc:
            raise StateError(f"can't use {self.path} for the state: {exc}; choose another run directory") from exc
        try:
            self.rebuilt = _clear_if_unusable(self.path)
            self._environment = _open(self.path, map_size_bytes)
            self.see_lent()
        except BaseException:
            self._lock.close()
            raise

    @property
    def epoch(self) -> int:
        """The number of the last change of the state; what the agent puts by `meta` is none."""
        return self._epoch

    def apply(self, delta: Delta, meta: Meta | None = None) -> int:
        """Make the change; returns the epoch, the old one if nothing changed.  Raises StateError, nothing then being applied.

        meta: as `put_meta` takes them, written in the same transaction.
        """
        return self._write(lambda change: change.apply(delta), meta)

    def replace(self, everything: Everything, meta: Meta | None = None) -> int:
        """Make this all there is, writing only what differs; returns the epoch, the old one if nothing did.  Else as `apply`."""
        return self._write(lambda change: change.replace(everything), meta)

    def rewrite(self, deltas: Iterable[Delta], kept: Keys | None, meta: Meta | None = None) -> int:
        """Make several changes in one transaction, so that a state need not be in memory at once.  Else as `apply`.

        kept: by kind, the keys of all that is there then, if what has another key is to go; "workloads" → uids and so on.
        """
        return self._write(lambda change: change.rewrite(deltas, kept), meta)

    def see_lent(self) -> None:
        """Know of what was written by whom this writer was lent to."""
        with self._environment.env.begin() as txn:
            self._epoch = epoch_of(txn, self._environment.tables)

    def put_meta(self, meta: Meta) -> None:
        """Keep each value for the agent under its key, or forget it (None)."""
        self._write(lambda change: None, meta)

    def forget_asked(self) -> None:
        """Forget which names were asked for on demand, and what the answers were."""
        with self._environment.env.begin() as txn:
            names = [key.decode() for key in txn.cursor(self._environment.tables["asked"]).iternext(values=False)]
        if names:
            self.apply(Delta(forgotten=tuple(names)))

    def get_meta(self, key: str) -> bytes | None:
        """What was put under `key`."""
        with self._environment.env.begin() as txn:
            value: bytes | None = txn.get(key.encode(), db=self._environment.tables["meta"])
        return value

    def keys(self, kind: str) -> Iterator[str]:
        """The keys of all "workloads", "services" or "policies", in order; nobody writes meanwhile."""
        with self._environment.env.begin() as txn, txn.cursor(self._environment.tables[kind]) as cursor:
            for key in cursor.iternext(keys=True, values=False):
                yield key.decode()

    def metas(self, prefix: str) -> Iterator[tuple[str, bytes]]:
        """What was put under keys that begin so, in their order, each without the prefix; nobody writes meanwhile."""
        head = prefix.encode()
        with self._environment.env.begin() as txn, txn.cursor(self._environment.tables["meta"]) as cursor:
            if not cursor.set_range(head):
                return
            for key, value in cursor.iternext():
                if not key.startswith(head):
                    return
                yield key[len(head) :].decode(), value

    def copy(self, directory: Path) -> None:
        """Write all of it to a directory of its own, made anew; nobody writes meanwhile.  Raises StateError."""
        try:
            shutil.rmtree(directory, ignore_errors=True)
            directory.mkdir(mode=0o700)
            # Not env.copy(): it writes by O_DIRECT, which an overlay of a tmpfs before Linux 6.6 takes, to refuse each write.
            with (directory / "data.mdb").open("xb") as file:
                self._environment.env.copyfd(file.fileno(), compact=True)
        except (OSError, lmdb.Error) as exc:
            raise StateError(f"can't copy the state to {directory}: {exc}; is the disk full?") from exc

    def reader(self) -> StateReader:
        """A reader in this process."""
        return StateReader(self.path)

    def close(self) -> None:
        """Let go of the environment and of the lock."""
        self._environment.release()
        if self._lock is not None:
            self._lock.close()

    def _write(self, work: Callable[[_Change], None], meta: Meta | None) -> int:
        # Readers that were killed would pin their snapshot for ever.
        self._environment.env.reader_check()
        txn = None
        try:
            txn = self._environment.env.begin(write=True)
            change = _Change(txn, self._environment.tables)
            work(change)
            change.put_meta(meta or {})
            epoch = record(txn, self._environment.tables, change.touched) if change.touched else self._epoch
            if change.touched:
                self.before_commit(change.touched)
            if change.made:
                txn.commit()
                self._epoch = epoch
        except lmdb.MapFullError as exc:
            size = self._environment.env.info()["map_size"] >> 20
            raise StateError(f"the state does not fit into {size} MiB; nothing was applied, raise map_size_bytes") from exc
        except lmdb.Error as exc:
            raise StateError(f"can't write the state in {self.path}: {exc}; nothing of this change was applied") from exc
        finally:
            if txn is not None:
                txn.abort()  # does nothing after a commit
        if change.count > _LARGE:
            self._give_memory_back()
        return self._epoch

    def _give_memory_back(self) -> None:
        try:
            self._environment.reopen()
        except lmdb.Error as exc:
            raise StateError(f"can't open the state in {self.path} again after a large change of it: {exc}") from exc


class _Change:
    """One write transaction; `made` tells whether it has changed anything, `touched` what of the state."""

    def __init__(self, txn: lmdb.Transaction, tables: dict[str, Any]) -> None:
        self.touched = Touched()
        self.count = 0  # of entries that were written or removed
        self._meta = False
        self._txn = txn
        self._tables = tables
        self._on_demand = bool(txn.stat(tables["asked"])["entries"])

    @property
    def made(self) -> bool:
        return self._meta or bool(self.touched)

    def apply(self, delta: Delta) -> None:
        # Removals first: a key that is both removed and given in one delta stays, as with ztunnel's.
        for table, removed, given in (
            (WORKLOADS, delta.removed_workloads, delta.workloads),
            (SERVICES, delta.removed_services, delta.services),
            (POLICIES, delta.removed_policies, delta.policies),
        ):
            kept = {table.key(resource) for resource in given} if removed else set()
            for key in removed:
                if key not in kept:
                    self._remove(table, key.encode())
            for resource in sorted(given, key=table.key):  # as in `_differences`
                self._put(table, resource)
        for name in delta.forgotten:
            self._forget(name)
        self._answer(delta.present, PRESENT)
        self._answer(delta.absent, ABSENT)

    def replace(self, everything: Everything) -> None:
        for table, given in (
            (WORKLOADS, everything.workloads),
            (SERVICES, everything.services),
            (POLICIES, everything.policies),
        ):
            gone, changed = self._differences(table, given)
            for key in gone:
                self._remove(table, key)
            for resource in changed:
                self._put(table, resource)

    def rewrite(self, deltas: Iterable[Delta], kept: Keys | None) -> None:
        for delta in deltas:
            self.apply(delta)
        if kept is None:
            return
        for table in _TABLES:
            with self._txn.cursor(self._tables[table.name]) as cursor:
                stored = cast("Iterator[bytes]", cursor.iternext(keys=True, values=False))
                gone = [key for key in stored if key.decode() not in kept[table.name]]
            for key in gone:
                self._remove(table, key)

    def _differences(self, table: Table, given: Sequence[msgspec.Struct]) -> tuple[list[bytes], list[msgspec.Struct]]:
        """What is stored and not given any more; what is given and not stored, or not the same.

        One walk over both in the order of keys.  It is also the order in which to write: LMDB fills pages to the brim by it,
        which takes half of the memory.
        """
        gone, changed = [], []
        with self._txn.cursor(self._tables[table.name]) as cursor:
            stored = cast("Iterator[tuple[bytes, bytes]]", cursor.iternext())
            here, value = next(stored, _END)
            for resource in sorted(given, key=table.key):  # of text, which sorts as its UTF-8 does
                key = table.key(resource).encode()
                while here is not None and here < key:
                    gone.append(here)
                    here, value = next(stored, _END)
                if here != key:
                    changed.append(resource)
                    continue
                if value != encode(resource):
                    changed.append(resource)
                here, value = next(stored, _END)
            while here is not None:
                gone.append(here)
                here, value = next(stored, _END)
        return gone, changed

    def put_meta(self, meta: Meta) -> None:
        table = self._tables["meta"]
        for name, value in meta.items():
            key = name.encode()
            before = self._txn.get(key, db=table)
            if before == value:
                continue
            self._meta |= self._txn.delete(key, db=table) if value is None else self._txn.put(key, value, db=table)
            if name == PARTIAL:
                self.touched.tell_all()  # what is unknown means something else from here on

    def _put(self, table: Table, resource: msgspec.Struct) -> None:
        name = table.key(resource)
        key, raw = name.encode(), encode(resource)
        before = self._txn.get(key, db=self._tables[table.name]) if 0 < len(key) <= MAX_KEY_BYTES else None
        if before == raw:
            return
        old = None if before is None else table.decode(bytes(before))
        if old == resource:  # equal maps whose keys came in another order have other bytes
            return
        try:
            entries = set(table.entries(resource, key))
        except ConfigError as exc:
            raise UnstorableError(f"{table.name} {name[:80]!r}: {exc}") from exc
        for _, index_key, value in ((table.name, key, b""), *entries):
            if not 0 < len(index_key) <= MAX_KEY_BYTES or len(value) > MAX_KEY_BYTES:
                raise UnstorableError(f"{table.name} {name[:80]!r}: a name in it is empty or above {MAX_KEY_BYTES} bytes")
        stale = set() if old is None else set(table.entries(old, key))
        self.count += 1 + len(stale ^ entries)
        for index, index_key, value in stale - entries:
            self._txn.delete(index_key, value, db=self._tables[index])
        for index, index_key, value in entries - stale:
            self._txn.put(index_key, value, db=self._tables[index])
        self._txn.put(key, raw, db=self._tables[table.name])
        if self._on_demand:
            self._arrived(table, resource)
        self._touch(table, resource)
        if old is not None:
            self._touch(table, old)

    def _remove(self, table: Table, key: bytes) -> None:
        raw = self._txn.pop(key, db=self._tables[table.name]) if 0 < len(key) <= MAX_KEY_BYTES else None
        if raw is None:
            return
        old = table.decode(bytes(raw))
        entries = set(table.entries(old, key))
        self.count += 1 + len(entries)
        for index, index_key, value in entries:
            self._txn.delete(index_key, value, db=self._tables[index])
        self._touch(table, old)

    # ── names that were asked for ──

    def _answer(self, names: Iterable[str], answer: bytes) -> None:
        """No change of the state: who finds nobody under a name looks here, and keeps nothing of "not asked yet"."""
        asked = self._tables["asked"]
        for name in names:
            key = name.encode()
            if 0 < len(key) <= MAX_KEY_BYTES and self._txn.get(key, db=asked) != answer:
                self._meta |= self._txn.put(key, answer, db=asked)
                self._on_demand = True

    def _forget(self, name: str) -> None:
        """That nobody has a name is kept by readers with what follows from it, so that to forget it is a change."""
        key = name.encode()
        answer = self._txn.pop(key, db=self._tables["asked"]) if 0 < len(key) <= MAX_KEY_BYTES else None
        if answer is not None:
            self._meta = True
        if answer == ABSENT and not self.touched.everything:
            self.touched.addresses.add(name)

    def _arrived(self, table: Table, resource: msgspec.Struct) -> None:
        """Whoever comes is not absent, under none of its names, and not when it has gone again either."""
        asked = self._tables["asked"]
        for name in table.names(resource):
            if self._txn.get(name.encode(), db=asked) == ABSENT:
                self._txn.put(name.encode(), PRESENT, db=asked)

    def _touch(self, table: Table, resource: msgspec.Struct) -> None:
        if not self.touched.everything:
            table.touch(resource, self.touched)
            if len(self.touched.workloads) + len(self.touched.services) + len(self.touched.policies) > MAX_NAMES:
                self.touched.tell_all()


def _lock(directory: Path) -> IO[str]:
    """Hold the writer's lock.  A POSIX record lock is the process's own: a worker that outlives its agent does not hold it."""
    file = (directory / _LOCK_FILE).open("a+", encoding="ascii")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as exc:
        file.seek(0)
        holder = file.read(20).strip() or "unknown"
        file.close()
        if exc.errno not in (errno.EACCES, errno.EAGAIN):
            raise
        raise StateError(
            f"the state in {directory} is in use by process {holder}; stop it, or give this one another --instance or --run-dir"
        ) from exc
    file.truncate(0)
    file.write(f"{os.getpid()}\n")
    file.flush()
    return file


def _clear_if_unusable(directory: Path) -> str:
    """Remove a damaged store or one of another version; returns why, "" if there was no need."""
    if not (directory / DATA_FILE).exists():
        return ""
    try:
        check_whole(directory)
        environment = acquire(directory, writable=True, map_size_bytes=0)
        try:
            with environment.env.begin() as txn:
                version = txn.get(b"schema", db=environment.tables["about"])
        finally:
            environment.release()
        reason = "" if version == SCHEMA else f"it has version {version!r}, this program writes {SCHEMA!r}"
    except lmdb.Error as exc:
        reason = f"it is damaged: {exc}"
    if reason:
        # A new file, not an emptied one: whoever still maps the old one keeps what it has.
        for name in (DATA_FILE, "lock.mdb"):
            (directory / name).unlink(missing_ok=True)
    return reason


def _open(directory: Path, map_size_bytes: int) -> Environment:
    try:
        environment = acquire(directory, writable=True, map_size_bytes=map_size_bytes)
        with environment.env.begin(write=True) as txn:
            if txn.get(b"schema", db=environment.tables["about"]) != SCHEMA:
                txn.put(b"schema", SCHEMA, db=environment.tables["about"])
    except lmdb.Error as exc:
        raise StateError(f"can't open the state in {directory}: {exc}; is the disk full or read-only?") from exc
    return environment
