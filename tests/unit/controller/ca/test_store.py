"""One Secret and several replicas: who makes it, who follows it, and what costs them nothing."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import pytest

from nodeproxy.controller.ca import keys as ca_keys
from nodeproxy.controller.ca import store as ca_store
from nodeproxy.controller.ca.keys import Phase
from nodeproxy.controller.ca.rotation import ASKED, FOLLOW_S, Rotation
from nodeproxy.controller.ca.settings import CaSettings
from nodeproxy.controller.ca.store import CaStore
from nodeproxy.errors import ClusterError
from tests.unit.controller.material import KEYS, NOW, ca_certificate, pem, sec1
from tests.unit.controller.secrets import Secrets

NAME = "nodeproxy-ca"


def store(api: Secrets, **options: Any) -> CaStore:
    return CaStore(api, "nodeproxy-system", NAME, "cluster.local", **{"clock": lambda: NOW} | options)


def data(**parts: bytes) -> dict[str, str]:
    return {name.replace("_", "."): base64.b64encode(content).decode() for name, content in parts.items()}


def serial(of: CaStore) -> int:
    assert of.keys is not None
    return of.keys.certificate.serial_number


def test_two_replicas_at_once_make_one_ca() -> None:
    async def run() -> None:
        api = Secrets()
        one, two = store(api), store(api)
        await asyncio.gather(one.load(), two.load())
        assert serial(one) == serial(two)

    asyncio.run(run())


def test_somebody_else_was_faster() -> None:
    api = Secrets()
    one, two = store(api), store(api)

    def meanwhile() -> None:
        api.before_post = lambda: None
        with pytest.raises(StopIteration):  # its requests are answered at once, so it is through within ours
            two.refresh().send(None)

    api.before_post = meanwhile
    asyncio.run(one.refresh())
    assert serial(one) == serial(two)
    assert api.log.count("POST") == 2


def test_a_change_is_followed_and_told() -> None:
    api = Secrets()
    one, two = store(api), store(api)
    told: list[Phase] = []
    two.on_change.append(lambda keys: told.append(keys.phase))
    asyncio.run(one.load())
    asyncio.run(two.load())
    asyncio.run(two.refresh())
    assert told == [Phase.STEADY]
    api.edit(NAME, metadata={"name": NAME, "annotations": {ASKED: "now", "other": "stays"}})
    asyncio.run(one.refresh())
    assert one.asked()
    assert asyncio.run(Rotation(one, CaSettings(), clock=lambda: NOW).rotate_if_due())
    assert not one.asked()
    assert api.objects[NAME]["metadata"]["annotations"] == {"other": "stays"}
    asyncio.run(two.refresh())
    assert told == [Phase.STEADY, Phase.SPREADING]
    later = Rotation(two, CaSettings(), clock=lambda: NOW + 2 * 86_400)
    assert [asyncio.run(later.rotate_if_due()) for _ in range(2)] == [True, False]
    assert set(api.objects[NAME]["data"]) == {"tls.crt", "tls.key", "ca.crt", "cross.crt", "phase-since"}
    assert asyncio.run(Rotation(two, CaSettings(), clock=lambda: NOW + 4 * 86_400).rotate_if_due())
    assert set(api.objects[NAME]["data"]) == {"tls.crt", "tls.key", "ca.crt"}


def test_two_leaders_do_not_fight() -> None:
    api = Secrets()
    one, two = store(api), store(api)
    for replica in (one, two):
        asyncio.run(replica.load())
    api.edit(NAME, metadata={"name": NAME, "annotations": {ASKED: ""}})
    for replica in (one, two):
        asyncio.run(replica.refresh())
    made = [asyncio.run(Rotation(replica, CaSettings(), clock=lambda: NOW).rotate_if_due()) for replica in (one, two)]
    assert made == [True, False]
    asyncio.run(two.refresh())
    assert one.keys is not None
    assert two.keys is not None
    assert ca_keys.encode(one.keys) == ca_keys.encode(two.keys)


def test_garbage_costs_no_key_and_is_not_overwritten(caplog: pytest.LogCaptureFixture) -> None:
    api = Secrets()
    one = store(api)
    asyncio.run(one.load())
    before, good = serial(one), api.objects[NAME]["data"]
    for garbage in (data(tls_crt=b"garbage"), {}, None, {"tls.crt": good["tls.crt"]}):
        api.edit(NAME, data=garbage, metadata={"name": NAME, "annotations": {ASKED: ""}})
        for _ in range(3):
            asyncio.run(one.refresh())
        assert serial(one) == before
        assert one.signing_keys() is one.keys
        assert not one.statistics().valid
        assert not asyncio.run(Rotation(one, CaSettings(), clock=lambda: NOW).rotate_if_due())
    assert len([record for record in caplog.records if "can't be used" in record.message]) == 4
    assert "PATCH" not in api.log
    api.edit(NAME, data=good)
    asyncio.run(one.refresh())
    assert one.statistics().valid


def test_a_secret_that_is_deleted_comes_back_with_the_keys_in_use() -> None:
    api = Secrets()
    one = store(api)
    asyncio.run(one.load())
    before = serial(one)
    api.objects.clear()
    asyncio.run(one.refresh())
    again = store(api)
    asyncio.run(again.load())
    assert serial(again) == before


def test_an_api_server_that_fails_costs_no_key_for_ten_minutes() -> None:
    api, now = Secrets(), [0.0]
    one = store(api, monotonic=lambda: now[0])
    asyncio.run(one.load())
    for failing in (0, 403, 500):
        api.failing = failing
        with pytest.raises(ClusterError):
            asyncio.run(one.refresh())
    now[0] = FOLLOW_S - 1
    assert one.signing_keys() is one.keys
    now[0] = FOLLOW_S
    assert one.signing_keys() is None
    assert one.keys is not None
    assert one.statistics().reads["failed"] == 3


def test_somebody_elses_secret_is_waited_for_followed_and_never_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ca_store, "FIRST_RETRY_S", 0.001)
    root = ca_certificate("root", KEYS[0])
    lower = ca_certificate("lower", KEYS[1], root, KEYS[0])
    api = Secrets()
    one = store(api, own=False)
    given = {"metadata": {"name": NAME}, "data": data(tls_crt=pem(lower), tls_key=sec1(KEYS[1]), ca_crt=pem(root))}

    async def run() -> None:
        waiting = asyncio.create_task(one.load())
        while len(api.log) < 3:
            await asyncio.sleep(0)
        assert not waiting.done()
        api._write(NAME, given)
        assert (await waiting).certificate == lower
        renewed = ca_certificate("lower", KEYS[2], root, KEYS[0])
        api.edit(NAME, data=data(tls_crt=pem(renewed), tls_key=sec1(KEYS[2]), ca_crt=pem(root)))
        await one.refresh()
        assert one.keys is not None
        assert one.keys.certificate == renewed
        api.objects.clear()
        await one.refresh()
        assert one.keys.certificate == renewed
        assert not one.statistics().valid
        assert set(api.log) == {"GET"}

    asyncio.run(run())


def test_run_follows_and_only_the_leader_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        api, leads, rotations = Secrets(), [False], []
        one = store(api)
        await one.load()

        async def rotate() -> None:
            rotations.append(len(api.log))
            if len(rotations) == 1:
                raise ClusterError("not now", 500)

        running = asyncio.create_task(one.run(lambda: leads[0], rotate, poll_s=0.001))
        while len(api.log) < 6:
            await asyncio.sleep(0)
        assert not rotations
        leads[0] = True
        api.failing = 500
        while len(rotations) < 3:
            await asyncio.sleep(0)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    asyncio.run(run())


def test_an_answer_that_is_no_secret() -> None:
    class Proxy:
        async def request(self, *_: Any, **__: Any) -> bytes:
            return b"<html>"

    with pytest.raises(ClusterError, match="no Secret"):
        asyncio.run(store(Proxy()).refresh())  # type: ignore[arg-type]
