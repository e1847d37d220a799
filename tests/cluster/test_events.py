"""Events on pods, with a real API server, and an account that may create and patch them and nothing else."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

import msgspec
import pytest

from nodeproxy.agent.pods import events as module
from nodeproxy.agent.pods.event_api import EventApi
from nodeproxy.agent.pods.events import Events
from nodeproxy.agent.pods.label_events import LabelEvents
from nodeproxy.model.node_pod import Membership, NodePod
from nodeproxy.settings import Address
from tests.cluster.apiserver import ISSUER, ApiServer
from tests.cluster.background import Background
from tests.cluster.fault_proxy import Fault, FaultProxy
from tests.cluster.kinds import list_path, make, pod
from tests.mesh.cluster import wait_until

HOME = "nodeproxy-system"
RULES = [{"apiGroups": ["events.k8s.io"], "resources": ["events"], "verbs": ["create", "patch"]}]
Unique = Callable[[str], str]
DEADLINE_S = 30.0


@pytest.fixture(scope="module")
def account(bare_api: ApiServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What Kubernetes mounts into the agent's pod."""
    subject = {"kind": "ServiceAccount", "name": "nodeproxy", "namespace": HOME}
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "events"}
    bare_api.create(
        make("Namespace", HOME),
        make("ServiceAccount", "nodeproxy", HOME),
        make("ClusterRole", "events", rules=RULES),
        make("ClusterRoleBinding", "events", subjects=[subject], roleRef=role),
        pod("agent", HOME, node="n1", ips=["10.9.0.1"], account="nodeproxy"),
    )
    folder = tmp_path_factory.mktemp("account")
    (folder / "token").write_text(bare_api.token(HOME, "nodeproxy", audience=ISSUER, pod="agent"))
    (folder / "ca.crt").write_bytes(bare_api.ca_file.read_bytes())
    return folder


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Repetitions are written at once, and pauses are short."""
    for name, value in (("REPEAT_S", 0.0), ("PACE_S", 0.01), ("FIRST_PAUSE_S", 0.02), ("MAX_PAUSE_S", 0.1)):
        monkeypatch.setattr(module, name, value)


def api_of(bare_api: ApiServer, account: Path) -> EventApi:
    host, _, port = bare_api.url.removeprefix("https://").rpartition(":")
    return EventApi(Address(host, int(port)), account)


class Teller:
    """An agent's part that tells, on a loop of its own; use it as a context."""

    def __init__(self, api: EventApi) -> None:
        self.events = Events("n1", api)
        self._running = threading.Event()
        self._background = Background("events", self._run)

    async def _run(self, stop: asyncio.Event) -> None:
        task = asyncio.create_task(self.events.run())
        self._running.set()
        await stop.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    def __enter__(self) -> Self:
        self._background.start()
        assert self._running.wait(30)
        return self

    def __exit__(self, *exc: object) -> None:
        self._background.stop()

    def do(self, work: Callable[[], None]) -> None:
        """On its loop."""
        self._background.call(work)

    def tell(self, web: tuple[str, str, str], reason: str, message: str, warning: bool) -> None:
        self.do(lambda: self.events.tell(*web, reason, message, warning))

    def results(self) -> Mapping[str, int]:
        return self.events.statistics().results

    def wait_told(self) -> None:
        wait_until(lambda: not self.events.statistics().waiting, "all is written", DEADLINE_S)


def described(api: ApiServer, space: str, name: str, uid: str) -> list[dict[str, Any]]:
    """The Events that `kubectl describe pod` shows: it asks for them by these fields."""
    fields = f"involvedObject.name={name},involvedObject.namespace={space},involvedObject.kind=Pod,involvedObject.uid={uid}"
    return list(api.request("GET", f"{list_path('Event', space)}?fieldSelector={quote(fields)}")["items"])


@pytest.fixture
def web(bare_api: ApiServer, unique: Unique) -> tuple[str, str, str]:
    """Namespace, name and uid of a pod."""
    space = unique("shop")
    bare_api.create(make("Namespace", space), make("ServiceAccount", "default", space))
    made = bare_api.create(pod("web", space, node="n1", ips=["10.9.1.1"]))
    return space, "web", made["metadata"]["uid"]


def test_whoever_describes_a_pod_sees_what_was_told_of_it(
    bare_api: ApiServer, account: Path, web: tuple[str, str, str], record_property: Callable[[str, object], None]
) -> None:
    failed = ("EnrolmentFailed", "it has no address yet", True)
    with Teller(api_of(bare_api, account)) as teller:
        began = time.monotonic()
        teller.tell(web, *failed)
        wait_until(lambda: described(bare_api, *web), "it is described")
        record_property("Events: from telling to seeing it described", f"{(time.monotonic() - began) * 1000:.0f} ms")
        for _ in range(3):
            teller.tell(web, *failed)
        wait_until(lambda: described(bare_api, *web)[0].get("series", {}).get("count") == 4, "it is counted")
        teller.tell(web, "Enrolled", "it is in the mesh", False)
        wait_until(lambda: len(described(bare_api, *web)) == 2, "the other is described")
        # An Event ends after an hour.
        (event,) = [each for each in described(bare_api, *web) if each["reason"] == "EnrolmentFailed"]
        bare_api.delete("Event", event["metadata"]["name"], web[0])
        teller.tell(web, *failed)
        wait_until(lambda: len(described(bare_api, *web)) == 2, "it is made anew")
    again, entered = sorted(described(bare_api, *web), key=lambda each: each["reason"] == "Enrolled")
    assert (again["type"], again["series"]["count"], again["message"]) == ("Warning", 5, "it has no address yet")
    assert (again["reportingComponent"], again["reportingInstance"]) == ("nodeproxy.io/agent", "n1")
    assert again["eventTime"] <= again["series"]["lastObservedTime"]
    assert (entered["type"], "series" in entered) == ("Normal", False)


def test_a_namespace_of_250_pods_is_labelled_at_once(
    bare_api: ApiServer, account: Path, unique: Unique, record_property: Callable[[str, object], None]
) -> None:
    space = unique("many")
    bare_api.create(make("Namespace", space))
    pods = [NodePod(namespace=space, name=f"p{n}", pod_uid=f"u{n}", membership=Membership.NAMESPACE_LABEL) for n in range(250)]
    with Teller(api_of(bare_api, account)) as teller:
        told = LabelEvents(teller.events)

        def come() -> None:
            for number, each in enumerate(pods):
                told.entering(each.pod_uid, each)
                told.counted(each.pod_uid, 2 if number % 50 == 1 else 0, False)
                if number == 1:
                    told.left(msgspec.structs.replace(each, membership=Membership.UNLABELLED))
            told.failed(pods[249], "no room")

        began = time.monotonic()
        teller.do(come)
        took_s = time.monotonic() - began
        record_property("Events: 250 pods that come at once: to tell", f"{took_s * 1e3:.0f} ms")
        assert took_s < 0.5
        wait_until(lambda: len(described(bare_api, space, "p249", "u249")) == 1, "it is described", DEADLINE_S)
        wait_until(lambda: len(described(bare_api, space, "p1", "u1")) == 3, "it is described", DEADLINE_S)
        assert teller.results()["dropped_full"] == teller.results()["dropped_pod"] == 0
    shown = {each["reason"]: each for each in described(bare_api, space, "p1", "u1")}
    assert {reason: each["type"] for reason, each in shown.items()} == {
        "Enrolled": "Normal",
        "StandingConnections": "Warning",
        "Left": "Normal",
    }
    assert shown["StandingConnections"]["message"].endswith("until they end: 2")
    (warned,) = described(bare_api, space, "p249", "u249")  # which went past the others' Enrolled
    assert (warned["reason"], warned["type"]) == ("EnrolmentFailed", "Warning")


@pytest.mark.parametrize("fault", [Fault.THROTTLE, Fault.FAIL, Fault.CUT])
def test_an_api_server_in_trouble_holds_nobody_up_and_is_told_later(
    bare_api: ApiServer, account: Path, web: tuple[str, str, str], fault: Fault
) -> None:
    with FaultProxy(bare_api) as proxy:
        api = api_of(bare_api, account)
        api._base = f"http://127.0.0.1:{proxy.port}/apis/events.k8s.io/v1/namespaces"
        with Teller(api) as teller:
            proxy.set(fault)
            teller.tell(web, "HeldBack", "the mesh is not ready", True)
            wait_until(lambda: proxy.seen[fault] >= 2, "it was tried again")
            began = time.monotonic()
            for number in range(2000):
                teller.tell((web[0], f"other-{number % 20}", "u"), "HeldBack", f"the mesh is not ready, {number % 3}", True)
            assert time.monotonic() - began < 2.0
            assert not described(bare_api, *web)
            proxy.set(Fault.NONE)
            wait_until(lambda: described(bare_api, *web), "it is described")
            teller.wait_told()
        assert teller.results()["failed"] >= 2
        assert (teller.results()["written"], teller.results()["refused"]) == (61, 0)


def test_an_api_server_that_is_away_is_told_when_it_is_back(
    bare_api: ApiServer, account: Path, web: tuple[str, str, str]
) -> None:
    with Teller(api_of(bare_api, account)) as teller:
        teller.tell(web, "Enrolled", "it is in the mesh", False)
        wait_until(lambda: described(bare_api, *web), "it is described")
        bare_api.kill_apiserver()
        teller.tell(web, "LeftMesh", "it is not in the mesh any more", False)
        wait_until(lambda: teller.results()["failed"] >= 2, "it was tried again")
        bare_api.start_apiserver()
        wait_until(lambda: len(described(bare_api, *web)) == 2, "the other is described", DEADLINE_S)


def test_without_the_right_it_says_what_is_needed(
    bare_api: ApiServer, account: Path, web: tuple[str, str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "ca.crt").write_bytes((account / "ca.crt").read_bytes())
    (tmp_path / "token").write_text(bare_api.token(web[0], "default", audience=ISSUER, pod="web"))
    with Teller(api_of(bare_api, tmp_path)) as teller:
        teller.tell(web, "Enrolled", "it is in the mesh", False)
        wait_until(lambda: "events.events.k8s.io is forbidden" in caplog.text, "it is said")
        # The kubelet renews tokens: each request is made with what the file holds.
        (tmp_path / "token").write_text("nonsense")
        failed = teller.results()["failed"]
        wait_until(lambda: teller.results()["failed"] >= failed + 2, "nobody knows us")
        (tmp_path / "token").write_text((account / "token").read_text())
        wait_until(lambda: described(bare_api, *web), "it is described")
    assert "the agent's account needs create and patch on events of events.k8s.io" in caplog.text
    assert [each["reason"] for each in described(bare_api, *web)] == ["Enrolled"]
