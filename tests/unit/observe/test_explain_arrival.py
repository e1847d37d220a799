"""What a destination's node says of a connection."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nodeproxy.errors import ConfigError
from nodeproxy.model.delta import Everything
from nodeproxy.model.policy import Action, Match, Policy, PolicyScope
from nodeproxy.model.reason import Reason
from nodeproxy.observe.explain import Explanation
from nodeproxy.observe.explain_arrival import Arrival, explain_arrival
from nodeproxy.state.store import StateWriter
from nodeproxy.state.view import View
from tests.unit.state.builders import pod

UID = "c//Pod/ns/web"


@pytest.fixture
def view(tmp_path: Path) -> Iterator[View]:
    known = Policy(
        name="known",
        namespace="ns",
        scope=PolicyScope.NAMESPACE,
        action=Action.DENY,
        rules=(((Match(destination_ports=(9999,)),),),),
    )
    writer = StateWriter(tmp_path)
    writer.replace(Everything(workloads=(pod("web", "10.0.0.2", uid=UID),), policies=(known,)))
    reader = writer.reader()
    yield reader.view()
    reader.close()
    writer.close()


def ask(view: View, *, enrolled: bool = True, certificate: bool = True, port: int = 80, **changes: Any) -> Explanation:
    fields: dict[str, Any] = {
        "kind": "hbone",
        "workload": UID,
        "address": f"10.0.0.2:{port}",
        "authority": f"10.0.0.2:{port}",
        "identity": "spiffe://cluster.local/ns/ns/sa/a",
        "source_address": "10.0.0.1",
    }
    return explain_arrival(view, Arrival(**(fields | changes)), enrolled=enrolled, has_certificate=certificate)


def reason(found: Explanation) -> Reason | None:
    return found.refusal.reason if found.refusal is not None else None


def test_a_tunnel_is_let_in_or_denied_by_policy(view: View) -> None:
    found = ask(view)
    assert (found.refusal, found.outcome, found.enrolled) == (None, "let in to 10.0.0.2:80", True)
    assert found.source == "spiffe://cluster.local/ns/ns/sa/a"
    assert reason(ask(view, port=9999)) is Reason.POLICY_DENY


def test_a_pod_that_is_not_enrolled_answers_no_tunnel_and_takes_plaintext_unasked(view: View) -> None:
    assert reason(ask(view, enrolled=False)) is Reason.CONNECT_REFUSED
    plain = ask(view, enrolled=False, kind="plain", identity="", port=9999)
    assert plain.refusal is None
    assert "nobody asks policy" in plain.outcome
    assert plain.source == "10.0.0.1"
    assert reason(ask(view, kind="plain", identity="", port=9999)) is Reason.POLICY_DENY


def test_what_this_node_lacks(view: View) -> None:
    assert reason(ask(view, certificate=False)) is Reason.NO_CERTIFICATE
    assert reason(ask(view, workload="c//Pod/ns/other")) is Reason.UNKNOWN_WORKLOAD


@pytest.mark.parametrize("changes", [{"kind": "local"}, {"address": "web:80"}, {"address": ""}])
def test_asked_wrongly(view: View, changes: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="must be"):
        ask(view, **changes)
