from __future__ import annotations

import json
import re
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from nodeproxy.model.connection import Connection, Direction, Party, Security
from nodeproxy.model.reason import Reason, Refusal
from nodeproxy.observe.access_log import MAX_LINE_BYTES, format_dry_run_json, format_dry_run_text, format_json, format_text

Make = Callable[..., Connection]
VALUE = r'(?:"(?:[^"\\]|\\["\\/bfnrt]|\\u[0-9a-f]{4})*"|[A-Za-z0-9.:\[\]_-]+)'
HEAD = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z\t(?:info|error)\taccess\tconnection complete\t"
LINE = re.compile(rf"{HEAD}[a-z_.]+={VALUE}(?: [a-z_.]+={VALUE})*\n")


def test_the_line_of_ztunnel(connection: Make) -> None:
    assert format_text(connection()).decode() == (
        "2023-11-14T22:13:20.015300Z\tinfo\taccess\tconnection complete\t"
        'src.addr=10.0.0.1:4000 src.workload="cart-1234" src.namespace="shop" '
        'src.identity="spiffe://cluster.local/ns/shop/sa/cart" src.cluster="east" '
        'dst.addr=10.0.1.2:15008 dst.hbone_addr=10.0.1.2:80 dst.service="stock.back.svc.cluster.local" '
        'dst.workload="stock-77" dst.namespace="back" '
        'dst.identity="spiffe://cluster.local/ns/back/sa/stock" dst.cluster="Kubernetes" '
        'direction="outbound" bytes_sent=84 bytes_recv=358 duration="15ms"\n'
    )


def test_json_says_the_same(connection: Make) -> None:
    refused = connection(reason=Reason.POLICY_DENY, detail='denied by "shop/p", rule 1')
    line = json.loads(format_json(refused))
    assert line == {
        "level": "error",
        "time": "2023-11-14T22:13:20.015300Z",
        "scope": "access",
        "message": "connection complete",
        "src.addr": "10.0.0.1:4000",
        "src.workload": "cart-1234",
        "src.namespace": "shop",
        "src.identity": "spiffe://cluster.local/ns/shop/sa/cart",
        "src.cluster": "east",
        "dst.addr": "10.0.1.2:15008",
        "dst.hbone_addr": "10.0.1.2:80",
        "dst.service": "stock.back.svc.cluster.local",
        "dst.workload": "stock-77",
        "dst.namespace": "back",
        "dst.identity": "spiffe://cluster.local/ns/back/sa/stock",
        "dst.cluster": "Kubernetes",
        "direction": "outbound",
        "bytes_sent": 84,
        "bytes_recv": 358,
        "duration": "15ms",
        "error": 'policy_deny: denied by "shop/p", rule 1',
    }


def test_bytes_are_seen_from_the_reporting_side(connection: Make) -> None:
    line = format_text(connection(direction=Direction.INBOUND))
    assert b"bytes_sent=358 bytes_recv=84" in line


def test_what_is_not_known_is_left_out(connection: Make) -> None:
    bare = connection(
        source=Party("[fd00::1]:5"), destination=Party("10.0.0.9:80"), security=Security.NONE, service=None, hbone_address=""
    )
    text = format_text(bare).decode().split("\t")[-1]
    assert text == 'src.addr=[fd00::1]:5 dst.addr=10.0.0.9:80 direction="outbound" bytes_sent=84 bytes_recv=358 duration="15ms"\n'


def test_identities_without_tls_are_not_claimed(connection: Make) -> None:
    plain = connection(security=Security.NONE, destination=Party("10.0.0.9:80", connection().destination.workload))
    assert b"dst.identity" not in format_text(plain)
    assert b"dst.identity" in format_text(replace_security(plain))


def replace_security(connection: Connection) -> Connection:
    return replace(connection, security=Security.MUTUAL_TLS)


@pytest.mark.parametrize("reason", list(Reason))
def test_each_reason_stands_in_the_line(reason: Reason, connection: Make) -> None:
    line = format_text(connection(reason=reason))
    assert f'error="{reason.value}"'.encode() in line
    assert b"\terror\taccess\t" in line


def test_a_clock_that_went_back(connection: Make) -> None:
    assert b'duration="0ms"' in format_text(connection(ended=1_600_000_000.0))


FORGERY = 'x" bytes_sent=0\n2023-11-14T22:13:20.015300Z\tinfo\taccess\tconnection complete\tsrc.addr=6.6.6.6:6 '


def test_a_peer_forges_no_line_and_no_field(connection: Make) -> None:
    hostile = connection(reason=Reason.BAD_AUTHORITY, detail=FORGERY, hbone_address=FORGERY, source=Party(FORGERY, None, FORGERY))
    line = format_text(hostile).decode()
    assert LINE.fullmatch(line)
    assert line.count("\n") == 1
    assert line.count("\t") == 4
    record = json.loads(format_json(hostile))
    assert FORGERY.startswith(record["dst.hbone_addr"])


@given(st.text(max_size=80), st.text(max_size=5000), st.integers(0, 4))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
def test_any_text_makes_one_short_ascii_line(connection: Make, some: str, long: str, times: int) -> None:
    workload = replace(connection().source.workload, name=long * times, namespace=some, cluster=long)
    hostile = connection(
        reason=Reason.H2_PROTOCOL,
        detail=long,
        hbone_address=some,
        source=Party(some, workload, long),
        destination=Party(long, workload, some),
    )
    line = format_text(hostile)
    assert len(line) <= MAX_LINE_BYTES
    assert LINE.fullmatch(line.decode("ascii"))
    line = format_json(hostile)
    assert len(line) <= MAX_LINE_BYTES
    assert line.isascii()
    assert line.count(b"\n") == 1
    json.loads(line)


@pytest.mark.parametrize("text", ["a" * 10_000, "\x00" * 10_000, "😀" * 10_000, "\x7f" * 10_000, '"' * 10_000])
def test_the_longest_line_fits_a_pipes_atomic_write(text: str, connection: Make) -> None:
    workload = replace(connection().source.workload, name=text, namespace=text, cluster=text)
    party = Party(text, workload, text)
    full = connection(reason=Reason.H2_PROTOCOL, detail=text, hbone_address=text, source=party, destination=party)
    full = replace(full, service=replace(full.service, hostname=text))
    for line in (format_text(full), format_json(full)):
        assert len(line) < MAX_LINE_BYTES
        assert b"\x7f" not in line
        assert line.count(b"\n") == 1


def test_names_as_long_as_kubernetes_allows_are_whole(connection: Make) -> None:
    identity = "spiffe://" + "t" * 255 + "/ns/" + "n" * 63 + "/sa/" + "s" * 253
    line = format_text(connection(source=Party("10.0.0.1:1", None, identity)))
    assert identity.encode() in line


def test_a_dry_run_has_a_line_of_its_own(connection: Make) -> None:
    refusal = Refusal(Reason.POLICY_DENY, 'denied by DENY policy shop/"p", rule 1', "shop/p")
    begun = connection(ended=0.0)
    text = format_dry_run_text(begun, refusal).decode()
    assert text.startswith(
        "2023-11-14T22:13:20.000000Z\tinfo\tpolicy\ta policy in dry-run would have refused this connection\t"
        'src.addr=10.0.0.1:4000 src.workload="cart-1234" '
    )
    assert text.endswith(' direction="outbound" dry_run="policy_deny: denied by DENY policy shop/\\"p\\", rule 1"\n')
    line = json.loads(format_dry_run_json(begun, refusal))
    assert line["scope"] == "policy"
    assert line["dry_run"] == 'policy_deny: denied by DENY policy shop/"p", rule 1'
    assert line["dst.addr"] == "10.0.1.2:15008"
    assert not {"bytes_sent", "duration", "error"} & line.keys()


def test_a_dry_run_line_is_short_too(connection: Make) -> None:
    refusal = Refusal(Reason.POLICY_NO_ALLOW, "\n" * 10_000)
    long = connection(source=Party("\U0001f600" * 5000, identity="\U0001f600" * 5000))
    for write in (format_dry_run_text, format_dry_run_json):
        line = write(long, refusal)
        assert len(line) <= MAX_LINE_BYTES
        assert line.count(b"\n") == 1
