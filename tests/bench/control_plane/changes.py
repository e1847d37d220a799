"""Changes of pods: each sets a label of a pod of its own to a mark, and is dated by when its request was sent.

So what is measured from there includes the API server's part: its write, and its watch.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Sequence

from tests.bench.control_plane.objects import REVISION, Size, pod_place
from tests.bench.control_plane.subscribers import MARK
from tests.bench.control_plane.writer import Connection, WriteError
from tests.cluster.apiserver import ApiServer
from tests.cluster.kinds import item_path

# So that one slow answer of the API server does not delay the changes after it.
_CONNECTIONS = 8
_MARKS = 10**8


class Changes:
    """Numbers its marks on and on, from somewhere: the pods may have marks of others already.  A pod is not changed twice before
    all others were."""

    def __init__(self, api: ApiServer, size: Size) -> None:
        self._api = api
        self._size = size
        self._next = random.randrange(_MARKS // 2)
        self._connection = Connection(api)

    def one(self) -> tuple[int, float, float]:
        """Change a pod; the mark, when it was sent, and when the API server had answered."""
        mark = self._take(1)[0]
        sent = self._change(self._connection, mark)
        return mark, sent, time.monotonic()

    def at_rate(self, per_s: float, seconds: float) -> dict[int, float]:
        """Change pods evenly; mark → when it was sent.  Raises WriteError."""
        marks = self._take(int(per_s * seconds))
        sent: dict[int, float] = {}
        errors: list[BaseException] = []
        began = time.monotonic()

        def work(mine: Sequence[int]) -> None:
            try:
                connection = Connection(self._api)
                try:
                    for mark in mine:
                        time.sleep(max(0.0, began + (mark - marks[0]) / per_s - time.monotonic()))
                        sent[mark] = self._change(connection, mark)
                finally:
                    connection.close()
            except Exception as error:
                errors.append(error)

        threads = [threading.Thread(target=work, args=(marks[first::_CONNECTIONS],)) for first in range(_CONNECTIONS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise WriteError("pods could not be changed") from errors[0]
        return sent

    def close(self) -> None:
        self._connection.close()

    def _take(self, count: int) -> range:
        taken = range(self._next, self._next + count)
        self._next += count
        return taken

    def _change(self, connection: Connection, mark: int) -> float:
        # Far from the one before it, so that no two that follow each other have a service or a node in common.
        space, name = pod_place(self._size, mark * 7919 % self._size.pods)
        patch = {"metadata": {"labels": {REVISION: MARK.format(mark)}}}
        request = connection.request("PATCH", item_path("Pod", name, space), patch, "application/merge-patch+json")
        sent = time.monotonic()
        connection.send(request)
        status, body = connection.status()
        if status != 200:
            raise WriteError(f"pod {name}: {status} {body[:300]!r}")
        return sent
