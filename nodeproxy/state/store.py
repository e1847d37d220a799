"""Writing the state: deltas and whole states in, one transaction each.

Invariants: one writer for a directory; a transaction applies whole or not at all; what did not change is not written, and if
nothing did, the epoch stays, so that readers keep their caches.
The store is a cache of the source that feeds it, kept so that a restarted agent has the last known state.  So an environment
that is damaged or of another version is made anew, empty, and `rebuilt` says why: the source will fill it.
Knows nothing of where deltas come from.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any, cast

import lmdb
import msgspec

from nodeproxy.errors import StateError
from nodeproxy.model.delta import Delta, Everything
from nodeproxy.model.policy import Policy
from nodeproxy.model.workload import Service, Workload
from nodeproxy.state.layout import (
    DATA_FILE,
    MAP_SIZE_BYTES,
    MAX_KEY_BYTES,
    SCHEMA,
    Environment,
    acquire,
    address_keys,
    check_unopened,
    check_whole,
    decode_policy,
    decode_service,
    decode_workload,
    encode,
    scope_key,
)
from nodeproxy.state.reader import StateReader

_LOCK_FILE = "writer.lock"

Entry = tuple[str, bytes, bytes]  # index, key, value


class StateWriter:
    """The only writer of the state in a directory.

    rebuilt: why what was there before had to be thrown away, "" if it was not.
    """

    def __init__(self, path: Path | str, map_size_bytes: int = MAP_SIZE_BYTES) -> None:
        """Raises StateError if another writer is there or the directory can't be used."""
        self.path = Path(path)
        # Before the lock: closing the lock's file once more would drop the lock that this process has (fcntl(2), record locks).
        check_unopened(self.path)
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = _lock(self.path)
        except OSError as exc:
            raise StateError(f"can't use {self.path} for the state: {exc}; choose another run directory") from exc
        try:
            self.rebuilt = _clear_if_unusable(self.path)
            self._environment = _open(self.path, map_size_bytes)
        except BaseException:
            self._lock.close()
            raise

    @property
    def epoch(self) -> int:
        """The id of the last transaction that changed something."""
        return int(self._environment.env.info()["last_txnid"])

    def apply(self, delta: Delta) -> int:
        """Make the change; returns the epoch, the old one if nothing changed.  Raises StateError, nothing then being applied."""
        return self._write(lambda change: change.apply(delta))

    def replace(self, everything: Everything) -> int:
        """Make this all there is, writing only what differs; returns the epoch, the old one if nothing did."""
        return self._write(lambda change: change.replace(everything))

    def put_meta(self, key: str, value: bytes | None) -> None:
        """Keep `value` for the agent under `key`, or forget it (None)."""
        self._write(lambda change: change.put_meta(key.encode(), value))

    def get_meta(self, key: str) -> bytes | None:
        """What was put under `key`."""
        with self._environment.env.begin() as txn:
            value: bytes | None = txn.get(key.encode(), db=self._environment.tables["meta"])
        return value

    def reader(self) -> StateReader:
        """A reader in this process."""
        return StateReader(self.path)

    def close(self) -> None:
        """Let go of the environment and of the lock."""
        self._environment.release()
        self._lock.close()

    def _write(self, work: Callable[[_Change], None]) -> int:
        # Readers that were killed would pin their snapshot for ever.
        self._environment.env.reader_check()
        txn = None
        try:
            txn = self._environment.env.begin(write=True)
            change = _Change(txn, self._environment.tables)
            work(change)
            if change.made:
                txn.commit()
            else:
                txn.abort()
        except lmdb.MapFullError as exc:
            size = self._environment.env.info()["map_size"] >> 20
            raise StateError(f"the state does not fit into {size} MiB; nothing was applied, raise map_size_bytes") from exc
        except lmdb.Error as exc:
            raise StateError(f"can't write the state in {self.path}: {exc}; nothing of this change was applied") from exc
        finally:
            if txn is not None:
                txn.abort()  # does nothing after a commit
        return self.epoch


class _Table:
    """How one kind of resource is stored: its table, its key, and the index entries that it stands for."""

    def __init__(
        self,
        name: str,
        key: Callable[[Any], str],
        decode: Callable[[bytes], Any],
        entries: Callable[[Any, bytes], Iterable[Entry]],
    ) -> None:
        self.name, self.key, self.decode, self.entries = name, key, decode, entries


def _workload_entries(workload: Workload, key: bytes) -> Iterable[Entry]:
    yield from (("addresses", address, key) for address in address_keys(workload))
    yield from (("endpoints", service.encode(), key) for service in workload.services)


def _service_entries(service: Service, key: bytes) -> Iterable[Entry]:
    yield from (("vips", vip.encode(), key) for vip in service.vips)
    yield "hosts", service.hostname.lower().encode(), key


def _policy_entries(policy: Policy, key: bytes) -> Iterable[Entry]:
    scope = scope_key(policy)
    if scope is not None:
        yield "scopes", scope, key


def _policy_key(policy: Policy) -> str:
    return policy.key


def _service_key(service: Service) -> str:
    return service.key


def _workload_key(workload: Workload) -> str:
    return workload.uid


_WORKLOADS = _Table("workloads", _workload_key, decode_workload, _workload_entries)
_SERVICES = _Table("services", _service_key, decode_service, _service_entries)
_POLICIES = _Table("policies", _policy_key, decode_policy, _policy_entries)


class _Change:
    """One write transaction; `made` tells whether it has changed anything."""

    def __init__(self, txn: lmdb.Transaction, tables: dict[str, Any]) -> None:
        self.made = False
        self._txn = txn
        self._tables = tables

    def apply(self, delta: Delta) -> None:
        # Removals first: a key that is both removed and given in one delta stays, as with ztunnel's.
        for table, removed, given in (
            (_WORKLOADS, delta.removed_workloads, delta.workloads),
            (_SERVICES, delta.removed_services, delta.services),
            (_POLICIES, delta.removed_policies, delta.policies),
        ):
            kept = {table.key(resource) for resource in given} if removed else set()
            for key in removed:
                if key not in kept:
                    self._remove(table, key.encode())
            for resource in given:
                self._put(table, resource)

    def replace(self, everything: Everything) -> None:
        for table, given in (
            (_WORKLOADS, everything.workloads),
            (_SERVICES, everything.services),
            (_POLICIES, everything.policies),
        ):
            kept = {table.key(resource).encode() for resource in given}
            with self._txn.cursor(self._tables[table.name]) as cursor:
                stored = cast("Iterator[bytes]", cursor.iternext(keys=True, values=False))
                gone = [key for key in stored if key not in kept]
            for key in gone:
                self._remove(table, key)
            for resource in given:
                self._put(table, resource)

    def put_meta(self, key: bytes, value: bytes | None) -> None:
        table = self._tables["meta"]
        if value is None:
            self.made |= self._txn.delete(key, db=table)
        elif self._txn.get(key, db=table) != value:
            self.made |= self._txn.put(key, value, db=table)

    def _put(self, table: _Table, resource: msgspec.Struct) -> None:
        name = table.key(resource)
        key, raw = name.encode(), encode(resource)
        before = self._txn.get(key, db=self._tables[table.name]) if 0 < len(key) <= MAX_KEY_BYTES else None
        if before == raw:
            return
        old = None if before is None else table.decode(bytes(before))
        if old == resource:  # equal maps whose keys came in another order have other bytes
            return
        entries = set(table.entries(resource, key))
        for _, index_key, value in ((table.name, key, b""), *entries):
            if not 0 < len(index_key) <= MAX_KEY_BYTES or len(value) > MAX_KEY_BYTES:
                raise StateError(f"{table.name} {name[:80]!r}: a name in it is empty or above {MAX_KEY_BYTES} bytes")
        stale = set() if old is None else set(table.entries(old, key)) - entries
        for index, index_key, value in stale:
            self._txn.delete(index_key, value, db=self._tables[index])
        for index, index_key, value in entries:
            self._txn.put(index_key, value, db=self._tables[index])
        self._txn.put(key, raw, db=self._tables[table.name])
        self.made = True

    def _remove(self, table: _Table, key: bytes) -> None:
        raw = self._txn.pop(key, db=self._tables[table.name]) if 0 < len(key) <= MAX_KEY_BYTES else None
        if raw is None:
            return
        for index, index_key, value in table.entries(table.decode(bytes(raw)), key):
            self._txn.delete(index_key, value, db=self._tables[index])
        self.made = True


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
