from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from nodeproxy.lab import demo_signals


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    demo_signals.listen()
    yield
    demo_signals.listen()  # forgets what was noted
    demo_signals.stop_listening()
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_is_noted_and_obeyed_where_it_is_asked_for(number: signal.Signals):
    demo_signals.check()
    os.kill(os.getpid(), number)
    assert demo_signals.noted() == number
    with pytest.raises(demo_signals.Interrupted, match=f"interrupted by {number.name}"):
        demo_signals.check()


def test_what_must_come_to_its_end_does():
    demo_signals.stop_listening()
    os.kill(os.getpid(), signal.SIGINT)
    demo_signals.check()
    assert demo_signals.noted() == signal.SIGINT
