"""One client, as whoever publishes sees it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from nodeproxy.controller.xds.session import Session
from nodeproxy.controller.xds.tables import Table


class Subscriber(Protocol):
    """One client."""

    session: Session

    def wake(self) -> None:
        """There may be something to tell."""


def release(table: Table, subscribers: Iterable[Subscriber]) -> None:
    """Let these, who are all that read the table, read what has changed, and forget what they all have been told."""
    table.release()
    subscriptions = [subscriber.session.subscriptions.get(table.type_url) for subscriber in subscribers]
    seen = [subscription.seen for subscription in subscriptions if subscription is not None]
    told = min((revision for revision in seen if revision is not None), default=table.released)
    table.forget(min(told, table.released))
