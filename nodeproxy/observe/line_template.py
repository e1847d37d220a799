"""Access-log lines of connections that differ in little: the same two pods, another port, other bytes, another time.

Made from the very line that `access_log` writes, so it says what that says.  It must not know its format.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from nodeproxy.model.address import join_address
from nodeproxy.model.connection import Connection
from nodeproxy.observe.access_log import timestamp

# What stands in the model line where the values go; none of them can be a real value.
_PORT = 999_999_999
_RECEIVED_BYTES = 8_111_111_111_111_111_111
_SENT_BYTES = 8_222_222_222_222_222_222
_DURATION_S = 987_654_321_987.0
_PLACES = (timestamp(0.0), str(_PORT), str(_RECEIVED_BYTES), str(_SENT_BYTES), f"{int(_DURATION_S * 1000)}ms")


class LineTemplate:
    """`fill` gives the line of a connection that is as `record` but for what it takes."""

    __slots__ = ("_text",)

    def __init__(self, format_line: Callable[[Connection], bytes], record: Connection, source_ip: str) -> None:
        """record: that ended well.  Raises ValueError if a name in it can't be told from what is to be filled in."""
        source = msgspec.structs.replace(record.source, address=join_address(source_ip, _PORT))
        model = msgspec.structs.replace(
            record, source=source, started=-_DURATION_S, ended=0.0, received_bytes=_RECEIVED_BYTES, sent_bytes=_SENT_BYTES
        )
        text = format_line(model).decode("ascii")
        places = [text.find(each) for each in _PLACES]
        if any(text.count(each) != 1 for each in _PLACES) or places != sorted(places):
            raise ValueError(text)
        text = text.replace("%", "%%")
        for each in _PLACES:
            text = text.replace(each, "%s" if each is not _PLACES[-1] else "%dms")
        self._text = text

    def fill(self, ended_s: float, duration_s: float, port: int, received_bytes: int, sent_bytes: int) -> bytes:
        """The line.  port: the source's."""
        duration_ms = max(int(duration_s * 1000), 0)
        return (self._text % (timestamp(ended_s), port, received_bytes, sent_bytes, duration_ms)).encode("ascii")
