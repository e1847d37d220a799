"""One line for each ended connection, in the form that ztunnel writes (head parted by tabs, then `key=value`), or as JSON; and
one for each refusal that a dry-run policy only wished for.

Invariants: a line is one line, whatever a peer sent: every value is quoted and escaped unless it consists of an address's
characters only; and it is short enough that a pipe takes it whole.  It must not know where lines go.  Workers import it.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from functools import lru_cache

from nodeproxy.model.connection import Connection, Direction, Party, Security
from nodeproxy.model.reason import Refusal
from nodeproxy.observe.kind import Fixed, Kind

# pipe(7): "Writes of less than PIPE_BUF bytes must be atomic", 4,096 on Linux: lines of several workers never mix within one
# pipe.
MAX_LINE_BYTES = 4096
# The longest identity that Kubernetes allows has 8 + 255 + 4 + 63 + 4 + 253 characters, other names at most 253.
MAX_VALUE_CHARACTERS = 600
# What is left for each value when a line with long ones would pass MAX_LINE_BYTES: 14 values, their keys and the head stay below
# it.
_SHORT_VALUE_CHARACTERS = 150
# An escaped character takes up to 12 bytes ("\ud83d\ude00").
_ESCAPED_BYTES = 12
# Beside a kind's fixed text: time, address, bytes and duration.
_VARIABLE_BYTES = 512
_ADDRESS = re.compile(r"[A-Za-z0-9.:\[\]_-]+")
_CLIENT = re.compile(r"[A-Za-z0-9.:\[\]_-]{1,64}:[0-9]{1,5}")  # any address that a kernel tells, but for one with a zone
_ADDRESSES = frozenset({"src.addr", "dst.addr", "dst.hbone_addr"})
_MESSAGE = "connection complete"
_DRY_RUN = "a policy in dry-run would have refused this connection"

Fields = list[tuple[str, str | int]]


def format_text(connection: Connection, kind: Kind | None = None) -> bytes:
    """The line as ztunnel writes it: time, level, "access", message, and the fields.  kind: its own, if it was opened."""
    fixed = _fixed(connection, kind, " ", _text_fields)
    if fixed is not None:
        port = connection.source.address[len(fixed.client) :]
        sent, received, ms = _measures(connection)
        return (
            f"{timestamp(connection.ended)}\tinfo\taccess\t{_MESSAGE}\t"
            f'{fixed.before}{port}{fixed.behind} bytes_sent={sent} bytes_recv={received} duration="{ms}ms"\n'
        ).encode("ascii")
    return _text(f"{timestamp(connection.ended)}\t{_level(connection)}\taccess\t{_MESSAGE}\t", list(_fields(connection)))


def format_json(connection: Connection, kind: Kind | None = None) -> bytes:
    """The same as one JSON object."""
    fixed = _fixed(connection, kind, ",", _json_fields)
    if fixed is not None:
        port = connection.source.address[len(fixed.client) :]
        sent, received, ms = _measures(connection)
        return (
            f'{{"level":"info","time":"{timestamp(connection.ended)}","scope":"access","message":"{_MESSAGE}",'
            f'{fixed.before}{port}{fixed.behind},"bytes_sent":{sent},"bytes_recv":{received},"duration":"{ms}ms"}}\n'
        ).encode("ascii")
    head = f'{{"level":"{_level(connection)}","time":"{timestamp(connection.ended)}","scope":"access","message":"{_MESSAGE}",'
    return _json(head, list(_fields(connection)))


def format_dry_run_text(connection: Connection, refusal: Refusal) -> bytes:
    """What a dry-run policy would have refused: a line as the connection begins, beside the one when it ends."""
    return _text(f"{timestamp(connection.started)}\tinfo\tpolicy\t{_DRY_RUN}\t", _dry_run_fields(connection, refusal))


def format_dry_run_json(connection: Connection, refusal: Refusal) -> bytes:
    """The same as one JSON object."""
    head = f'{{"level":"info","time":"{timestamp(connection.started)}","scope":"policy","message":"{_DRY_RUN}",'
    return _json(head, _dry_run_fields(connection, refusal))


def _fixed(connection: Connection, kind: Kind | None, comma: str, write: Callable[[Fields, int], Iterator[str]]) -> Fixed | None:
    """What is known of the connection's line beforehand; None: the line must be made as a whole."""
    if kind is None or connection.reason is not None:
        return None
    address, fixed = connection.source.address, kind.fixed
    if fixed is not None and address.startswith(fixed.client):
        port = address[len(fixed.client) :]
        if port.isdigit() and port.isascii():
            return fixed
    fixed = kind.fixed = _made_fixed(connection, comma, write)
    return fixed


def _made_fixed(connection: Connection, comma: str, write: Callable[[Fields, int], Iterator[str]]) -> Fixed | None:
    address = connection.source.address
    client = address[: address.rfind(":") + 1]
    fields: Fields = [*_ends(connection), ("direction", connection.direction.value)]
    line = comma.join(write(fields, MAX_VALUE_CHARACTERS))
    # Odd addresses are quoted, and long lines are cut.
    if not _CLIENT.fullmatch(address) or len(line) > MAX_LINE_BYTES - _VARIABLE_BYTES:
        return None
    before, _, behind = line.partition(address)
    return Fixed(client, before + client, behind)


def _measures(connection: Connection) -> tuple[int, int, int]:
    """Bytes sent and received, as this node's pod sees it, and milliseconds.

    Istio's metrics count from the source's request; its logs from the reporting proxy's side, so for outbound they swap.
    """
    sent, received = connection.sent_bytes, connection.received_bytes
    if connection.direction is Direction.OUTBOUND:
        sent, received = received, sent
    return sent, received, max(int((connection.ended - connection.started) * 1000), 0)


def _text(head: str, fields: Fields) -> bytes:
    line = head + " ".join(_text_fields(fields, MAX_VALUE_CHARACTERS))
    if len(line) >= MAX_LINE_BYTES:
        line = head + " ".join(_text_fields(fields, _SHORT_VALUE_CHARACTERS))
    return line.encode("ascii") + b"\n"


def _json(head: str, fields: Fields) -> bytes:
    line = head + ",".join(_json_fields(fields, MAX_VALUE_CHARACTERS))
    if len(line) + 1 >= MAX_LINE_BYTES:
        line = head + ",".join(_json_fields(fields, _SHORT_VALUE_CHARACTERS))
    return line.encode("ascii") + b"}\n"


def _level(connection: Connection) -> str:
    return "info" if connection.reason is None else "error"


def timestamp(when_s: float) -> str:
    """Seconds since the epoch as a line has them."""
    microseconds = int(when_s * 1e6)
    second = microseconds // 1_000_000
    # Seven digits without their first: formatting to a width takes ten times as long.
    return f"{_second(second)}.{str(microseconds - second * 1_000_000 + 1_000_000)[1:]}Z"


@lru_cache(maxsize=4)  # connections end in the order of time: most share their second with the one before
def _second(second: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))


def _text_fields(fields: Fields, limit: int) -> Iterator[str]:
    quoted = _quoter(fields, limit)
    for name, value in fields:
        if isinstance(value, int) or (name in _ADDRESSES and len(value) <= limit and _ADDRESS.fullmatch(value)):
            yield f"{name}={value}"
        else:
            yield f"{name}={quoted(value, limit)}"


def _json_fields(fields: Fields, limit: int) -> Iterator[str]:
    quoted = _quoter(fields, limit)
    for name, value in fields:
        yield f'"{name}":{value}' if isinstance(value, int) else f'"{name}":{quoted(value, limit)}'


def _fields(connection: Connection) -> Iterator[tuple[str, str | int]]:
    """What is known, in ztunnel's order; what is not known is left out, as there."""
    yield from _ends(connection)
    yield "direction", connection.direction.value
    sent, received, duration_ms = _measures(connection)
    yield "bytes_sent", sent
    yield "bytes_recv", received
    yield "duration", f"{duration_ms}ms"
    if connection.reason is not None:
        yield "error", f"{connection.reason.value}: {connection.detail}" if connection.detail else connection.reason.value


def _dry_run_fields(connection: Connection, refusal: Refusal) -> Fields:
    verdict = f"{refusal.reason.value}: {refusal.detail}"
    return [*_ends(connection), ("direction", connection.direction.value), ("dry_run", verdict)]


def _ends(connection: Connection) -> Iterator[tuple[str, str | int]]:
    yield "src.addr", connection.source.address
    yield from _party("src", connection.source, connection.source.identity)
    destination = connection.destination
    yield "dst.addr", destination.address
    if connection.hbone_address:
        yield "dst.hbone_addr", connection.hbone_address
    if connection.service is not None:
        yield "dst.service", connection.service.hostname
    identity = destination.identity
    if not identity and destination.workload is not None and connection.security is Security.MUTUAL_TLS:
        identity = destination.workload.identity
    yield from _party("dst", destination, identity)


def _party(side: str, party: Party, identity: str) -> Iterator[tuple[str, str]]:
    workload = party.workload
    if workload is not None:
        yield f"{side}.workload", workload.name or workload.canonical_name
        yield f"{side}.namespace", workload.namespace
    if identity:
        yield f"{side}.identity", identity
    if workload is not None and workload.cluster:
        yield f"{side}.cluster", workload.cluster


def _quoter(fields: Fields, limit: int) -> Callable[[str, int], str]:
    """How to quote these values: nearly always all are plain, and one look at all of them saves a third of a line's cost."""
    together = "".join([value for _, value in fields if isinstance(value, str)])
    return _bare if len(together) <= limit and _is_plain(together) else _quoted


def _is_plain(text: str) -> bool:
    """Printable ASCII but the quotation mark and the backslash: what stands within quotation marks as it is."""
    return text.isascii() and text.isprintable() and '"' not in text and "\\" not in text


def _bare(value: str, _limit: int) -> str:
    return f'"{value}"'


def _quoted(value: str, limit: int) -> str:
    """In quotation marks, ASCII only, as JSON escapes; cut so that it is no longer than `limit`, its escapes counted."""
    if _is_plain(value):
        return f'"{value[:limit]}"'
    # DEL is the one control character that JSON lets through.
    whole = json.dumps(value[:limit]).replace("\x7f", "\\u007f")
    return whole if len(whole) <= limit + 2 else json.dumps(value[: limit // _ESCAPED_BYTES]).replace("\x7f", "\\u007f")
