"""Reading the state in place: for each worker, for the agent itself and for commands.

Invariant: a reader shows one snapshot at a time and pins it only between `view()` and `release()`: pages of a pinned snapshot
can't be used again, so a reader that waits for work has released.  Knows nothing of writing.
"""

from __future__ import annotations

from pathlib import Path

import lmdb

from nodeproxy.errors import StateError
from nodeproxy.model.policy import Policy
from nodeproxy.state.layout import SCHEMA, acquire
from nodeproxy.state.view import View


class StateReader:
    """One process's eyes on the state.  Open it after fork: LMDB handles do not survive one."""

    def __init__(self, path: Path | str) -> None:
        """Raises StateError if there is no state of this version at `path`."""
        try:
            self._environment = acquire(Path(path), writable=False)
        except lmdb.Error as exc:
            raise StateError(f"no readable state in {path} ({exc}); is `nodeproxy run` up with this run directory?") from exc
        self._environment.users.add(self)
        self._decoded_policies: dict[bytes, Policy] = {}
        self._txn: lmdb.Transaction | None = None
        self._view: View | None = None
        schema = self._get("about", "schema")
        if schema != SCHEMA:
            self._environment.release()
            raise StateError(f"the state in {path} has version {schema!r}, not {SCHEMA!r}; restart `nodeproxy run`")

    def view(self) -> View:
        """The newest state; the same View, caches warm, as long as nothing changed.  Ends the validity of the View before."""
        if self._txn is not None:
            self._txn.abort()
        txn = self._txn = self._environment.env.begin()
        view = self._view
        if view is not None and view.epoch == txn.id():
            view.renew(txn)
            return view
        view = self._view = View(txn, self._environment.tables, self._decoded_policies)
        return view

    def release(self) -> None:
        """Let go of the snapshot: call it before waiting for events.  The last View must not be used until the next `view()`."""
        if self._txn is not None:
            self._txn.abort()
            self._txn = None

    def forget(self) -> None:
        """After fork, in the child: this reader is the parent's and can't be used here."""
        if self._view is not None:
            self._view.forget()
        self._txn = self._view = None

    def get_meta(self, key: str) -> bytes | None:
        """What the agent put under `key`."""
        return self._get("meta", key)

    def _get(self, table: str, key: str) -> bytes | None:
        with self._environment.env.begin() as txn:
            value: bytes | None = txn.get(key.encode(), db=self._environment.tables[table])
        return value

    def close(self) -> None:
        """Let go of everything."""
        self.release()
        self._view = None
        self._environment.release()
