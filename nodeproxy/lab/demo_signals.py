"""Ctrl-C and SIGTERM for the demo: noted when they come, acted on where nothing is half made.

An exception out of a signal handler can hit any line, and Python drops it where it hits a hook that runs around fork().  So the
handler only notes the signal, and whatever waits or begins something asks `check`.
"""

from __future__ import annotations

import signal
from types import FrameType

from nodeproxy.errors import NodeproxyError

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_noted = 0
_obeyed = False


class Interrupted(NodeproxyError):
    """Somebody wants the demo to end."""


def listen() -> None:
    """Note signals from now on."""
    global _noted, _obeyed
    _noted, _obeyed = 0, True
    for number in _SIGNALS:
        signal.signal(number, _note)


def check() -> None:
    """Raise Interrupted if a signal has come."""
    if _noted and _obeyed:
        raise Interrupted(f"interrupted by {signal.Signals(_noted).name}; everything is removed now")


def stop_listening() -> None:
    """What is going on now must come to its end: `check` lets pass, and signals are still only noted."""
    global _obeyed
    _obeyed = False


def noted() -> int:
    """The signal that has come, 0 if none."""
    return _noted


def _note(number: int, frame: FrameType | None) -> None:
    global _noted
    _noted = number
