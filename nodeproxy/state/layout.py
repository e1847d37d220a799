"""What is stored where, and how an LMDB environment is opened.

Tables (LMDB's named databases); indexes are multi-valued and sorted, so that equal state reads equally whatever order it came in:

    workloads   uid -> Workload                     addresses   "network/ip" -> uids
    services    "ns/hostname" -> Service            vips        "network/ip" -> service keys
    policies    "ns/name" -> Policy                 hosts       hostname in lower case -> service keys
    meta        agent's key -> bytes, `PARTIAL`     endpoints   service key -> uids of the workloads that list it
    about       "schema" -> version                 scopes      scope and group -> policy keys
                "epoch" -> number, big-endian       shapes      scope, group and shape -> policy keys
    changes     see `changes`                       rules       digest of scope, group, shape and values -> policy keys
    asked       on demand: name -> ABSENT, PRESENT

An index may name what is not there yet (an endpoint before its service): readers skip it.
A scope is a namespace, or "/" for all; a group is what a policy does, see `group`; shapes and values: `nodeproxy.policy.index`.
Knows the bytes, not what they mean for a connection (`view`) nor how they change (`store`).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Protocol
from weakref import WeakSet

import lmdb
import msgspec

from nodeproxy.errors import StateError
from nodeproxy.model.policy import Action, Policy, PolicyScope
from nodeproxy.model.workload import Service, Workload

# Raise it with every change of a table or of a stored struct that an older reader would misread.
SCHEMA = b"3"
# LMDB's own limit of a key and of an index's value (MDB_MAXKEYSIZE, compiled in).
MAX_KEY_BYTES = 511
# Address space, not memory: pages are used as they are needed.  100,000 workloads take some 60 MiB.
MAP_SIZE_BYTES = 4 << 30
# One slot a reading process and worker generation; LMDB's own default of 126 would do for a node, this leaves room for tools.
_MAX_READERS = 512

DATA_FILE = "data.mdb"
PLAIN_TABLES = ("workloads", "services", "policies", "meta", "about", "changes", "asked")
INDEXES = ("addresses", "vips", "hosts", "endpoints", "scopes", "shapes", "rules")
GLOBAL_SCOPE = "/"  # no namespace is named so
# Of the agent's keys in `meta` the one that is the state's: there as long as the first state of all is not there as a whole.
PARTIAL = "partial"
GROUPS = (b"D", b"A", b"d", b"a")
# What a source answered that was asked for a name: nobody has it, or somebody (who is in the tables, or has gone since).
ABSENT, PRESENT = b"-", b"+"

encode = msgspec.msgpack.Encoder().encode
decode_workload = msgspec.msgpack.Decoder(Workload).decode
decode_service = msgspec.msgpack.Decoder(Service).decode
decode_policy = msgspec.msgpack.Decoder(Policy).decode


def address_keys(workload: Workload) -> list[bytes]:
    """Keys of `addresses`.  A pod of the host's network shares its node's address with others: it has none of its own."""
    if workload.host_network:
        return []
    return [f"{workload.network}/{address}".encode() for address in workload.addresses]


def scope_of(policy: Policy) -> str | None:
    """The scope of a policy, None for one that holds only where a workload lists it."""
    if policy.scope is PolicyScope.GLOBAL:
        return GLOBAL_SCOPE
    return policy.namespace if policy.scope is PolicyScope.NAMESPACE else None


def group_of(policy: Policy) -> bytes:
    """What a policy does: one of `GROUPS`, "D" denies, "A" allows; in lower case if that is dry-run."""
    letter = b"D" if policy.action is Action.DENY else b"A"
    return letter.lower() if policy.dry_run else letter


def scope_key(scope: str, group: bytes, shape: str | None = None) -> bytes:
    """Key of `scopes`, and of `shapes` if there is a shape."""
    key = b"%b\0%b" % (scope.encode(), group)
    return key if shape is None else key + shape.encode()


class User(Protocol):
    """Whoever works with an `Environment`'s handles and can let go of them."""

    def release(self) -> None:
        """End the snapshot that it has, if it has one."""

    def forget(self) -> None:
        """Drop every handle of LMDB, without closing it."""


class Environment:
    """One opened LMDB environment with its tables, shared by the writer and readers of this process.

    LMDB forbids opening one twice in a process, and using one across fork: `acquire` counts its users, and a child process
    forgets what its parent had open.  So handles are reached through this object or held by a registered user, nowhere else.
    """

    def __init__(self, path: str, *, writable: bool, map_size_bytes: int) -> None:
        """Raises lmdb.Error if it can't be opened."""
        self.path, self.writable = path, writable
        self.count = 1
        self.users: WeakSet[User] = WeakSet()
        self.tables: dict[str, Any] = {}
        self.env = self._open(map_size_bytes)

    def _open(self, map_size_bytes: int) -> lmdb.Environment:
        # sync=False: the store is a cache of its source; a crash of the process loses nothing, one of the machine loses a cache.
        # readahead=False: look-ups are random.
        env = lmdb.open(
            self.path,
            map_size=map_size_bytes,
            readonly=not self.writable,
            create=self.writable,
            max_dbs=len(PLAIN_TABLES) + len(INDEXES),
            max_readers=_MAX_READERS,
            sync=False,
            readahead=False,
            mode=0o600,
        )
        try:
            for name in PLAIN_TABLES + INDEXES:
                self.tables[name] = env.open_db(name.encode(), create=self.writable, dupsort=name in INDEXES)
        except BaseException:
            env.close()
            raise
        return env

    def reopen(self) -> None:
        """Give back the memory that LMDB keeps for itself.  Every snapshot of this process is released."""
        for user in self.users:
            user.release()
        size = self.env.info()["map_size"]
        self.env.close()
        self.env = self._open(size)

    def release(self) -> None:
        """One user less; the last one closes."""
        self.count -= 1
        if self.count == 0:
            _opened.pop(self.path, None)
            self.env.close()

    def forget(self) -> None:
        """In a child after fork: drop the parent's handles.

        Closing them would clear the parent's slots in the table of readers, and its snapshots would be written over.
        """
        for user in self.users:
            user.forget()
        self.tables.clear()
        del self.env


_opened: dict[str, Environment] = {}


def _forget_inherited() -> None:
    for environment in _opened.values():
        environment.forget()
    _opened.clear()


os.register_at_fork(after_in_child=_forget_inherited)


def acquire(directory: Path, *, writable: bool, map_size_bytes: int = 0) -> Environment:
    """The environment in `directory`, opened if this process has not yet.  Raises StateError, or lmdb.Error if it is damaged."""
    path = os.path.realpath(directory)
    environment = _opened.get(path)
    if environment is not None:
        if writable:
            check_unopened(directory)
        environment.count += 1
        return environment
    environment = _opened[path] = Environment(path, writable=writable, map_size_bytes=map_size_bytes)
    return environment


def check_unopened(directory: Path) -> None:
    """Raises StateError if this process has the environment open, and so can't open it for writing."""
    environment = _opened.get(os.path.realpath(directory))
    if environment is not None:
        who = "a writer" if environment.writable else "a reader"
        raise StateError(f"the state in {directory} already has {who} in this process; close it, or open the writer first")


def check_whole(directory: Path) -> None:
    """Raises lmdb.CorruptedError if the file ends before the last page that it speaks of: reading there would be SIGBUS."""
    env = lmdb.open(str(directory), readonly=True, create=False, lock=False, map_size=0)
    try:
        needed = (env.info()["last_pgno"] + 1) * env.stat()["psize"]
    finally:
        env.close()
    size = (directory / DATA_FILE).stat().st_size
    if size < needed:
        raise lmdb.CorruptedError(f"{DATA_FILE} has {size} bytes of {needed}")
