"""The reflector against a real API server: nothing is lost, told twice or forgotten while it, or etcd, is killed or forgets."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import msgspec
import pytest

from nodeproxy.kube.client import KubeClient
from nodeproxy.kube.reflector import Reflector
from nodeproxy.kube.statistics import Trouble, WatchStatistics
from tests.cluster.apiserver import ApiServer
from tests.cluster.background import Background
from tests.cluster.fault_proxy import Fault, FaultProxy
from tests.cluster.kinds import list_path, make, namespace
from tests.mesh.cluster import wait_until

DEADLINE_S = 60.0


class Data(msgspec.Struct):
    data: dict[str, str] = {}


class Mirror:
    """A reflector in a thread of its own, and what it told, as a table; `told` counts."""

    def __init__(self, kubeconfig: Path, *paths: str, definition: str = "") -> None:
        self.table: dict[str, Any] = {}
        self.told = 0
        self.statistics = WatchStatistics()
        self._kubeconfig, self._paths, self._definition = kubeconfig, paths, definition
        self._background = Background("reflector", self._run)

    def __enter__(self) -> Self:
        self._background.start()
        try:
            self.until(lambda: self.statistics.synced, "the first list")
        except BaseException:
            self._background.stop()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self._background.stop()

    async def _run(self, stop: asyncio.Event) -> None:
        client = await KubeClient.connect(self._kubeconfig)
        reflector = Reflector(
            client,
            self._paths,
            Data if not self._definition else msgspec.Raw,
            on_change=self._changed,
            on_synced=lambda: None,
            lists=asyncio.Semaphore(2),
            definition=self._definition,
            absent_poll_s=0.5,
        )
        self.statistics = reflector.statistics
        task = asyncio.create_task(reflector.run())
        stopped = asyncio.create_task(stop.wait())
        await asyncio.wait([task, stopped], return_when=asyncio.FIRST_COMPLETED)
        for each in (task, stopped):
            each.cancel()
        outcomes = await asyncio.gather(task, stopped, return_exceptions=True)
        await client.close()
        for outcome in outcomes:
            if isinstance(outcome, Exception):
                raise outcome

    def _changed(self, key: str, resource: Any) -> None:
        self.told += 1
        if resource is None:
            del self.table[key]  # a KeyError: something was told as gone that never was
        else:
            self.table[key] = resource

    def of(self, space: str) -> dict[str, str]:
        """name → value of the data's key "v"."""
        prefix = space + "/"
        return {key.removeprefix(prefix): it.data["v"] for key, it in list(self.table.items()) if key.startswith(prefix)}

    def until(self, condition: Callable[[], bool], what: str) -> None:
        def holds() -> bool:
            assert self._background.error is None, self._background.error
            return condition()

        try:
            wait_until(holds, what, DEADLINE_S)
        except AssertionError as error:
            raise AssertionError(f"{error}: {list(self.table)}, {self.statistics}") from None


def config_map(name: str, space: str, value: str) -> dict[str, Any]:
    return make("ConfigMap", name, space, data={"v": value})


MAPS = list_path("ConfigMap")


def test_changes_come_while_the_api_server_and_etcd_are_killed(bare_api: ApiServer, unique: Callable[[str], str]) -> None:
    space = unique("space")
    bare_api.create(namespace(space), config_map("a", space, "1"), config_map("b", space, "1"))

    with Mirror(bare_api.kubeconfig(), MAPS) as seen:
        assert seen.of(space) == {"a": "1", "b": "1"}
        bare_api.apply(config_map("a", space, "2"), config_map("c", space, "1"))
        seen.until(lambda: seen.of(space) == {"a": "2", "b": "1", "c": "1"}, "two changes")
        bare_api.kill_apiserver()
        seen.until(lambda: seen.statistics.troubles[Trouble.UNREACHED] >= 2, "that it is away")
        assert seen.of(space) == {"a": "2", "b": "1", "c": "1"}
        bare_api.kill_etcd()
        bare_api.start()
        bare_api.delete("ConfigMap", "b", space)
        bare_api.apply(config_map("c", space, "2"))
        seen.until(lambda: seen.of(space) == {"a": "2", "c": "2"}, "what changed since")
        # Etcd alone: the API server stays, and has nothing to say.
        bare_api.kill_etcd()
        bare_api.start_etcd()
        bare_api.wait_ready()
        bare_api.apply(config_map("d", space, "1"))
        seen.until(lambda: seen.of(space) == {"a": "2", "c": "2", "d": "1"}, "what changed after etcd's restart")


def test_a_history_that_is_compacted_is_made_up_for(bare_api: ApiServer, unique: Callable[[str], str]) -> None:
    space = unique("space")
    bare_api.create(namespace(space), *(config_map(f"m{i}", space, "1") for i in range(20)))

    with FaultProxy(bare_api) as proxy, Mirror(proxy.kubeconfig(bare_api.tokens["admin"]), MAPS) as seen:
        proxy.set(Fault.CUT)
        bare_api.delete("ConfigMap", "m0", space)
        bare_api.apply(config_map("m1", space, "2"), config_map("new", space, "1"))
        bare_api.compact()
        bare_api.kill_apiserver()  # whose memory would bridge what etcd forgot
        bare_api.start_apiserver()
        told = seen.told
        proxy.set(Fault.NONE)
        expected = {f"m{i}": "1" for i in range(2, 20)} | {"m1": "2", "new": "1"}
        seen.until(lambda: seen.of(space) == expected, "the difference")
        assert seen.statistics.troubles[Trouble.GONE] >= 1
        assert seen.told - told == 3  # and not 20: what is unchanged is not told again


@pytest.mark.parametrize("fault", [Fault.THROTTLE, Fault.FAIL, Fault.GARBAGE, Fault.TRUNCATE, Fault.CUT])
def test_faults_on_the_way_lose_nothing(bare_api: ApiServer, unique: Callable[[str], str], fault: Fault) -> None:
    space = unique("space")
    bare_api.create(namespace(space), config_map("a", space, "1"), config_map("b", space, "1"))

    with FaultProxy(bare_api) as proxy, Mirror(proxy.kubeconfig(bare_api.tokens["admin"]), MAPS) as seen:
        proxy.set(fault)
        bare_api.delete("ConfigMap", "b", space)
        bare_api.apply(config_map("a", space, "2"))
        seen.until(lambda: proxy.seen[fault] >= 3, "three requests that fail")
        assert set(seen.of(space)) - {"b"} == {"a"}
        proxy.set(Fault.NONE)
        seen.until(lambda: seen.of(space) == {"a": "2"}, "what changed meanwhile")
        assert sum(seen.statistics.troubles.values()) >= 1


def test_many_changes_at_random_end_in_the_servers_state(bare_api: ApiServer, unique: Callable[[str], str]) -> None:
    space = unique("space")
    bare_api.create(namespace(space))
    dice = random.Random(7)

    def change(proxy: FaultProxy) -> dict[str, str]:
        state: dict[str, str] = {}
        for number in range(400):
            name = f"m{dice.randrange(40)}"
            if name in state and dice.random() < 0.3:
                bare_api.delete("ConfigMap", name, space)
                del state[name]
            else:
                bare_api.apply(config_map(name, space, str(number)))
                state[name] = str(number)
            if dice.random() < 0.05:
                proxy.set(dice.choice(list(Fault)))
            if dice.random() < 0.1:
                proxy.set(Fault.NONE)
        proxy.set(Fault.NONE)
        return state

    with FaultProxy(bare_api) as proxy, Mirror(proxy.kubeconfig(bare_api.tokens["admin"]), MAPS) as seen:
        state = change(proxy)
        seen.until(lambda: seen.of(space) == state, "the server's state")


POLICIES = [f"/apis/security.istio.io/{version}/authorizationpolicies" for version in ("v1", "v1beta1")]
POLICY_DEFINITION = "authorizationpolicies.security.istio.io"


def test_a_definition_comes_and_goes(definitions: list[Path], unique: Callable[[str], str]) -> None:
    server = ApiServer()
    space = unique("space")

    try:
        server.start()
        with Mirror(server.kubeconfig(), *POLICIES, definition=POLICY_DEFINITION) as seen:
            assert not seen.statistics.present
            server.install_definitions(definitions[0])
            server.create(namespace(space), make("AuthorizationPolicy", "p", space, spec={}))
            seen.until(lambda: set(seen.table) == {f"{space}/p"}, "the policy")
            # A server that starts, and does not know its definitions yet, does not make them go.
            server.kill_apiserver()
            server.start_apiserver()
            server.create(make("AuthorizationPolicy", "q", space, spec={}))
            seen.until(lambda: set(seen.table) == {f"{space}/p", f"{space}/q"}, "the second policy")
            assert seen.told == 2
            server.delete("CustomResourceDefinition", POLICY_DEFINITION)
            seen.until(lambda: not seen.table, "that the definition went")
            seen.until(lambda: not seen.statistics.present, "that its absence is known")
    finally:
        server.close()
