"""The reflector against a real API server: nothing is lost, told twice or forgotten while it, or etcd, is killed or forgets."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from nodeproxy.kube.client import KubeClient
from nodeproxy.kube.reflector import Reflector
from nodeproxy.kube.statistics import Trouble
from tests.cluster.apiserver import ApiServer
from tests.cluster.fault_proxy import Fault, FaultProxy
from tests.cluster.kinds import list_path, make, namespace

DEADLINE_S = 60.0


class Data(msgspec.Struct):
    data: dict[str, str] = {}


class Mirror:
    """What a reflector told, as a table; `told` counts."""

    def __init__(self, client: KubeClient, paths: list[str], definition: str = "") -> None:
        self.table: dict[str, Any] = {}
        self.told = 0
        self.synced = asyncio.Event()
        self.reflector = Reflector(
            client,
            paths,
            Data if not definition else msgspec.Raw,
            on_change=self._changed,
            on_synced=self.synced.set,
            lists=asyncio.Semaphore(2),
            definition=definition,
            absent_poll_s=0.5,
        )

    def _changed(self, key: str, resource: Any) -> None:
        self.told += 1
        if resource is None:
            del self.table[key]  # a KeyError: something was told as gone that never was
        else:
            self.table[key] = resource

    def of(self, space: str) -> dict[str, str]:
        """name → value of the data's key "v"."""
        prefix = space + "/"
        return {key.removeprefix(prefix): it.data["v"] for key, it in self.table.items() if key.startswith(prefix)}

    async def until(self, condition: Callable[[], bool], what: str) -> None:
        try:
            async with asyncio.timeout(DEADLINE_S):
                while not condition():
                    await asyncio.sleep(0.02)
        except TimeoutError:
            raise AssertionError(f"{what}: {self.table}, {self.reflector.statistics}") from None


@contextlib.asynccontextmanager
async def mirror(kubeconfig: Path, *paths: str, definition: str = "") -> AsyncIterator[Mirror]:
    client = await KubeClient.connect(kubeconfig)
    made = Mirror(client, list(paths), definition)
    task = asyncio.create_task(made.reflector.run())
    try:
        async with asyncio.timeout(DEADLINE_S):
            await made.synced.wait()
        yield made
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await client.close()


def config_map(name: str, space: str, value: str) -> dict[str, Any]:
    return make("ConfigMap", name, space, data={"v": value})


MAPS = list_path("ConfigMap")


def test_changes_come_while_the_api_server_and_etcd_are_killed(bare_api: ApiServer, unique: Callable[[str], str]) -> None:
    space = unique("space")
    bare_api.create(namespace(space), config_map("a", space, "1"), config_map("b", space, "1"))

    async def main() -> None:
        async with mirror(bare_api.kubeconfig(), MAPS) as seen:
            assert seen.of(space) == {"a": "1", "b": "1"}
            await asyncio.to_thread(bare_api.apply, config_map("a", space, "2"), config_map("c", space, "1"))
            await seen.until(lambda: seen.of(space) == {"a": "2", "b": "1", "c": "1"}, "two changes")
            await asyncio.to_thread(bare_api.kill_apiserver)
            await seen.until(lambda: seen.reflector.statistics.troubles[Trouble.UNREACHED] >= 2, "that it is away")
            assert seen.of(space) == {"a": "2", "b": "1", "c": "1"}
            await asyncio.to_thread(bare_api.kill_etcd)
            await asyncio.to_thread(bare_api.start)
            await asyncio.to_thread(bare_api.delete, "ConfigMap", "b", space)
            await asyncio.to_thread(bare_api.apply, config_map("c", space, "2"))
            await seen.until(lambda: seen.of(space) == {"a": "2", "c": "2"}, "what changed since")
            # Etcd alone: the API server stays, and has nothing to say.
            await asyncio.to_thread(bare_api.kill_etcd)
            await asyncio.to_thread(bare_api.start_etcd)
            await asyncio.to_thread(bare_api.wait_ready)
            await asyncio.to_thread(bare_api.apply, config_map("d", space, "1"))
            await seen.until(lambda: seen.of(space) == {"a": "2", "c": "2", "d": "1"}, "what changed after etcd's restart")

    asyncio.run(main())


def test_a_history_that_is_compacted_is_made_up_for(bare_api: ApiServer, unique: Callable[[str], str]) -> None:
    space = unique("space")
    bare_api.create(namespace(space), *(config_map(f"m{i}", space, "1") for i in range(20)))

    async def main(proxy: FaultProxy) -> None:
        async with mirror(proxy.kubeconfig(bare_api.tokens["admin"]), MAPS) as seen:
            proxy.set(Fault.CUT)

            def change() -> None:
                bare_api.delete("ConfigMap", "m0", space)
                bare_api.apply(config_map("m1", space, "2"), config_map("new", space, "1"))
                bare_api.compact()
                bare_api.kill_apiserver()  # whose memory would bridge what etcd forgot
                bare_api.start_apiserver()

            await asyncio.to_thread(change)
            told = seen.told
            proxy.set(Fault.NONE)
            expected = {f"m{i}": "1" for i in range(2, 20)} | {"m1": "2", "new": "1"}
            await seen.until(lambda: seen.of(space) == expected, "the difference")
            assert seen.reflector.statistics.troubles[Trouble.GONE] >= 1
            assert seen.told - told == 3  # and not 20: what is unchanged is not told again

    with FaultProxy(bare_api) as proxy:
        asyncio.run(main(proxy))


@pytest.mark.parametrize("fault", [Fault.THROTTLE, Fault.FAIL, Fault.GARBAGE, Fault.TRUNCATE, Fault.CUT])
def test_faults_on_the_way_lose_nothing(bare_api: ApiServer, unique: Callable[[str], str], fault: Fault) -> None:
    space = unique("space")
    bare_api.create(namespace(space), config_map("a", space, "1"), config_map("b", space, "1"))

    async def main(proxy: FaultProxy) -> None:
        async with mirror(proxy.kubeconfig(bare_api.tokens["admin"]), MAPS) as seen:
            proxy.set(fault)
            await asyncio.to_thread(bare_api.delete, "ConfigMap", "b", space)
            await asyncio.to_thread(bare_api.apply, config_map("a", space, "2"))
            await seen.until(lambda: proxy.seen[fault] >= 3, "three requests that fail")
            assert set(seen.of(space)) - {"b"} == {"a"}
            proxy.set(Fault.NONE)
            await seen.until(lambda: seen.of(space) == {"a": "2"}, "what changed meanwhile")
            assert sum(seen.reflector.statistics.troubles.values()) >= 3

    with FaultProxy(bare_api) as proxy:
        asyncio.run(main(proxy))


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

    async def main(proxy: FaultProxy) -> None:
        async with mirror(proxy.kubeconfig(bare_api.tokens["admin"]), MAPS) as seen:
            state = await asyncio.to_thread(change, proxy)
            await seen.until(lambda: seen.of(space) == state, "the server's state")

    with FaultProxy(bare_api) as proxy:
        asyncio.run(main(proxy))


POLICIES = [f"/apis/security.istio.io/{version}/authorizationpolicies" for version in ("v1", "v1beta1")]
POLICY_DEFINITION = "authorizationpolicies.security.istio.io"


def test_a_definition_comes_and_goes(definitions: list[Path], unique: Callable[[str], str]) -> None:
    server = ApiServer()
    space = unique("space")

    async def main() -> None:
        async with mirror(server.kubeconfig(), *POLICIES, definition=POLICY_DEFINITION) as seen:
            assert not seen.reflector.statistics.present
            await asyncio.to_thread(server.install_definitions, definitions[0])
            await asyncio.to_thread(server.create, namespace(space), make("AuthorizationPolicy", "p", space, spec={}))
            await seen.until(lambda: set(seen.table) == {f"{space}/p"}, "the policy")
            # A server that starts, and does not know its definitions yet, does not make them go.
            await asyncio.to_thread(server.kill_apiserver)
            await asyncio.to_thread(server.start_apiserver)
            await asyncio.to_thread(server.create, make("AuthorizationPolicy", "q", space, spec={}))
            await seen.until(lambda: set(seen.table) == {f"{space}/p", f"{space}/q"}, "the second policy")
            assert seen.told == 2
            await asyncio.to_thread(server.delete, "CustomResourceDefinition", POLICY_DEFINITION)
            await seen.until(lambda: not seen.table, "that the definition went")
            await seen.until(lambda: not seen.reflector.statistics.present, "that its absence is known")

    try:
        server.start()
        asyncio.run(main())
    finally:
        server.close()
