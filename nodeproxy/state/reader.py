"""Reading the state in place: for each worker, for the agent itself and for commands.

Invariant: a reader shows one snapshot at a time and pins it only between `view()` and `release()`: pages of a pinned snapshot
can't be used again, so a reader that waits for work has released.  What it has looked up it keeps from snapshot to snapshot, as
far as no change touched it.  Knows nothing of writing.
"""

from __future__ import annotations

from pathlib import Path

import lmdb

from nodeproxy.errors import StateError
from nodeproxy.state.changes import Touched, epoch_of, touched_since
from nodeproxy.state.kept import Kept
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
        self._kept = Kept()
        self._touched = Touched()
        self._txn: lmdb.Transaction | None = None
        self._txn_id = -1
        self._view: View | None = None
        schema = self._get("about", "schema")
        if schema != SCHEMA:
            self._environment.release()
            raise StateError(f"the state in {path} has version {schema!r}, not {SCHEMA!r}; restart `nodeproxy run`")

    def view(self) -> View:
        """The newest state; the same View as long as nothing changed.  Ends the validity of the View before."""
        if self._txn is not None:
            self._txn.abort()
        txn = self._txn = self._environment.env.begin()
        tables = self._environment.tables
        view = self._view
        if view is not None:
            # Most transactions are none of the state's changes: what the agent remembers is in the store, too.
            if txn.id() == self._txn_id or (epoch := epoch_of(txn, tables)) == view.epoch:
                self._txn_id = txn.id()
                view.renew(txn, tables)
                return view
            touched = touched_since(txn, tables, view.epoch, epoch)
            if touched.everything:
                self._kept = Kept()
            else:
                self._kept.drop(touched)
            self._touched.merge(touched)
        self._txn_id = txn.id()
        view = self._view = View(txn, tables, self._kept)
        return view

    def take_touched(self) -> Touched:
        """What has changed between the view that was shown when this was last called, or the first one, and the last one."""
        touched, self._touched = self._touched, Touched()
        return touched

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
