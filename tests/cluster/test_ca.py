"""The CA against a real API server: who gets a certificate, one CA however many replicas, and what stays when things break."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Callable

import pytest
from cryptography import x509

from nodeproxy.controller.ca.keys import Phase
from nodeproxy.controller.ca.rotation import ASKED, FOLLOW_S
from nodeproxy.controller.ca.settings import CaSettings
from nodeproxy.controller.ca.store import CaStore
from nodeproxy.identity import pki
from nodeproxy.kube.client import KubeClient
from tests.cluster.apiserver import ApiServer
from tests.cluster.ca import (
    HOME,
    SECRET,
    Replica,
    account_key,
    changed_token,
    client_of,
    install,
    replica_of,
    signed_token,
    until,
)
from tests.cluster.kinds import ambient, make, node, pod
from tests.unit.controller.material import KEYS, ca_certificate, pem, sec1, verifies

ROOT_MAP, ROOT_KEY = "nodeproxy-ca-root-cert", "root-cert.pem"
AUDIENCE = "istio-ca"
Unique = Callable[[str], str]


@pytest.fixture(scope="module")
def ca_api(bare_api: ApiServer) -> ApiServer:
    install(bare_api)
    bare_api.create(make("ServiceAccount", "nodeproxy", HOME))
    for number in (1, 2):
        bare_api.create(node(f"n{number}"))
        bare_api.create(pod(f"agent-{number}", HOME, node=f"n{number}", ips=[f"10.9.0.{number}"], account="nodeproxy"))
    return bare_api


def agent_token(api: ApiServer, number: int = 1) -> str:
    return api.token(HOME, "nodeproxy", audience=AUDIENCE, pod=f"agent-{number}")


def shop(api: ApiServer, unique: Unique) -> str:
    """A namespace in the mesh, with the pod `cart` on node n1."""
    space = unique("shop")
    api.create(ambient(space), make("ServiceAccount", "cart", space), make("ServiceAccount", "till", space))
    api.create(pod("cart", space, node="n1", ips=["10.9.1.1"], account="cart"))
    return space


def identity(space: str, account: str) -> str:
    return f"spiffe://cluster.local/ns/{space}/sa/{account}"


def name_of(leaf: x509.Certificate) -> str:
    (name,) = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return str(name.value)


def published(api: ApiServer, space: str) -> list[x509.Certificate]:
    return x509.load_pem_x509_certificates(api.get("ConfigMap", ROOT_MAP, space)["data"][ROOT_KEY].encode())


def has_roots(api: ApiServer, space: str, roots: bytes) -> bool:
    return any(
        item["metadata"]["name"] == ROOT_MAP and item.get("data", {}).get(ROOT_KEY) == roots.decode()
        for item in api.list("ConfigMap", space)
    )


def test_who_gets_a_certificate(ca_api: ApiServer, unique: Unique, caplog: pytest.LogCaptureFixture) -> None:
    space = shop(ca_api, unique)
    agent = agent_token(ca_api)
    cart = ca_api.token(space, "cart", audience=AUDIENCE, pod="cart")

    async def run() -> None:
        async with replica_of(ca_api, CaSettings(placement_wait_s=0.2)) as replica:
            assert name_of((await replica.ask(cart))[0]) == identity(space, "cart")
            assert name_of((await replica.ask(agent, identity(space, "cart")))[0]) == identity(space, "cart")
            assert await replica.refused(agent, identity(space, "till")) == "PERMISSION_DENIED"
            assert await replica.refused(agent_token(ca_api, 2), identity(space, "cart")) == "PERMISSION_DENIED"
            assert await replica.refused(cart, identity(space, "till")) == "PERMISSION_DENIED"
            ca_api.delete("Pod", "cart", space)
            # Its token is still known for a moment, which is of no use: the pod is gone.
            assert await replica.refused(cart) == "PERMISSION_DENIED"
            assert await replica.refused(agent, identity(space, "cart")) == "PERMISSION_DENIED"
            results = replica.results()
            assert {name: results[name] for name in ("signed", "not_trusted")} == {"signed": 2, "not_trusted": 1}
            assert results["not_on_node"] + results["node_unknown"] == 4

    asyncio.run(run())
    lines = [record.message for record in caplog.records if "not_on_node" in record.message]
    for part in ("nodeproxy-system/agent-1", "node n1", identity(space, "till")):
        assert part in lines[0]
    for token in (agent, cart):
        assert token not in caplog.text


def test_tokens_that_are_refused(ca_api: ApiServer, unique: Unique) -> None:
    space = shop(ca_api, unique)
    good = ca_api.token(space, "cart", audience=AUDIENCE, pod="cart")
    ca_api.create(pod("gone", space, node="n1", ips=["10.9.1.2"], account="cart"))
    of_deleted = ca_api.token(space, "cart", audience=AUDIENCE, pod="gone")
    ca_api.delete("Pod", "gone", space)
    now = int(time.time())
    refused = {
        "token_rejected": [changed_token(good, pki.new_key()), good[:-8] + "AAAAAAAA", of_deleted],
        "token_expired": [changed_token(good, account_key(ca_api), iat=now - 7200, nbf=now - 7200, exp=now - 3600)],
        "token_audience": [ca_api.token(space, "cart", pod="cart"), legacy_token(ca_api, space)],
        "not_a_pod": [ca_api.token(space, "cart", audience=AUDIENCE)],
        "token_malformed": ["garbage", ca_api.tokens["admin"]],
    }

    async def run() -> None:
        async with replica_of(ca_api) as replica:
            for tokens in refused.values():
                for token in tokens:
                    assert await replica.refused(token) == "UNAUTHENTICATED"
            counted = {reason: len(tokens) for reason, tokens in refused.items()}
            assert replica.callers() == counted
            assert replica.results() == counted
            # What this shows is the signature and the end: the same claims, untouched, are accepted.
            await replica.ask(changed_token(good, account_key(ca_api)))

    asyncio.run(run())


def legacy_token(api: ApiServer, space: str) -> str:
    """A token of a Secret, which has no end, no audience and no pod."""
    account = api.get("ServiceAccount", "cart", space)
    body = {
        "iss": "kubernetes/serviceaccount",
        "sub": f"system:serviceaccount:{space}:cart",
        "kubernetes.io/serviceaccount/namespace": space,
        "kubernetes.io/serviceaccount/secret.name": "legacy",
        "kubernetes.io/serviceaccount/service-account.name": "cart",
        "kubernetes.io/serviceaccount/service-account.uid": account["metadata"]["uid"],
    }
    token = signed_token({"alg": "ES256", "kid": ""}, body, account_key(api))
    annotations = {"kubernetes.io/service-account.name": "cart"}
    data = {"token": base64.b64encode(token.encode()).decode()}
    api.create(make("Secret", "legacy", space, type="kubernetes.io/service-account-token", annotations=annotations, data=data))
    # It is a good token for the API server itself: there, it is only not allowed to do this.
    with pytest.raises(Exception, match="403"):
        api.request("GET", "/api/v1/pods", token=token)
    return token


def test_a_pod_that_the_node_knows_before_we_do(ca_api: ApiServer, unique: Unique) -> None:
    space = shop(ca_api, unique)
    agent = agent_token(ca_api)

    async def run() -> None:
        async with replica_of(ca_api, CaSettings(placement_wait_s=20.0)) as replica:
            asking = asyncio.create_task(replica.ask(agent, identity(space, "till")))
            await until(lambda: replica.ca.service.statistics().waiting == 1, "the request waits")
            ca_api.create(pod("till", space, node="n1", ips=["10.9.1.3"], account="till"))
            assert name_of((await asking)[0]) == identity(space, "till")

    asyncio.run(run())


def test_replicas_that_start_at_once_are_one_ca(ca_api: ApiServer, unique: Unique) -> None:
    """The role lets the controller read one Secret only; here the administrator's rights are used, for many Secrets."""

    async def run() -> None:
        client = await KubeClient.connect(ca_api.kubeconfig())
        try:
            for _ in range(5):
                name = unique("ca")
                stores = [CaStore(client, HOME, name, "cluster.local") for _ in range(4)]
                keys = await asyncio.gather(*(store.load() for store in stores))
                assert len({each.certificate.serial_number for each in keys}) == 1
        finally:
            await client.close()

    asyncio.run(run())


def test_the_least_rights_are_enough_and_not_more(ca_api: ApiServer) -> None:
    token = ca_api.token(HOME, "controller")
    ca_api.create(make("Secret", "other", HOME))
    for method, path in (
        ("GET", f"/api/v1/namespaces/{HOME}/secrets"),
        ("GET", f"/api/v1/namespaces/{HOME}/secrets/other"),
        ("GET", "/api/v1/configmaps"),
        ("DELETE", f"/api/v1/namespaces/{HOME}/secrets/{SECRET}"),
    ):
        with pytest.raises(Exception, match="403"):
            ca_api.request(method, path, token=token)
    body = make("ConfigMap", "mine", "default", data={})
    with pytest.raises(Exception, match="403"):
        ca_api.request("POST", "/api/v1/namespaces/default/configmaps", body, token=token)


def test_a_secret_that_breaks(ca_api: ApiServer, unique: Unique) -> None:
    space = shop(ca_api, unique)
    cart = ca_api.token(space, "cart", audience=AUDIENCE, pod="cart")

    async def run() -> None:
        async with replica_of(ca_api) as replica:
            replica.leads = True
            before = replica.keys.certificate
            good = ca_api.get("Secret", SECRET, HOME)["data"]
            garbage = base64.b64encode(b"garbage").decode()
            for name in ("tls.crt", "tls.key", "ca.crt"):
                ca_api.patch("Secret", SECRET, HOME, data={name: garbage})
                await until(lambda: not replica.ca.store.statistics().valid, "the garbage is noticed")
                assert pki.issued_by((await replica.ask(cart))[0], before)
                assert ca_api.get("Secret", SECRET, HOME)["data"][name] == garbage  # left to its operator
                ca_api.patch("Secret", SECRET, HOME, data={name: good[name]})
                await until(lambda: replica.ca.store.statistics().valid, "what is mended is noticed")
            ca_api.delete("Secret", SECRET, HOME)
            await until(lambda: any(s["metadata"]["name"] == SECRET for s in ca_api.list("Secret", HOME)), "it is back")
            assert ca_api.get("Secret", SECRET, HOME)["data"] == good

    asyncio.run(run())


def test_a_whole_change_of_root(ca_api: ApiServer, unique: Unique) -> None:
    """Two replicas, of which the second leads: whatever was signed verifies by what is published, at each step."""
    space = shop(ca_api, unique)
    cart = ca_api.token(space, "cart", audience=AUDIENCE, pod="cart", seconds=7200)
    settings = CaSettings(max_lifetime_s=3600.0, default_lifetime_s=3600.0, root_overlap_s=1800.0)
    leaves: list[list[x509.Certificate]] = []

    async def sign_and_check(replicas: list[Replica], phase: Phase) -> None:
        for replica in replicas:
            await until(lambda: replica.keys.phase is phase, f"it is {phase}")  # noqa: B023
        keys = replicas[0].keys
        await until(lambda: has_roots(ca_api, space, keys.roots_pem()), "the roots are published")
        for replica in replicas:
            leaves.append(await replica.ask(cart))
        now = max(replica.now() for replica in replicas)
        alive = [chain for chain in leaves if chain[0].not_valid_after_utc.timestamp() > now]
        assert alive
        for leaf, *chain in alive:
            assert verifies(leaf, chain, published(ca_api, space), now)

    async def run() -> None:
        async with replica_of(ca_api, settings) as follower, replica_of(ca_api, settings) as leader:
            replicas = [follower, leader]
            leader.leads = True
            leader.ca.publisher.need(space, True)
            await sign_and_check(replicas, Phase.STEADY)
            (first,) = published(ca_api, space)
            ca_api.patch("Secret", SECRET, HOME, metadata={"annotations": {ASKED: "by hand"}})
            await sign_and_check(replicas, Phase.SPREADING)
            assert ASKED not in ca_api.get("Secret", SECRET, HOME)["metadata"].get("annotations", {})
            leader.shift_s += settings.root_overlap_s + 1  # the follower's clock is behind: what signs is in the Secret
            await sign_and_check(replicas, Phase.DRAINING)
            late_leaf, *cross = leaves[-1]
            assert verifies(late_leaf, cross, [first], leader.now())  # for a node that has not heard of the new root
            assert verifies(late_leaf, [], [root for root in published(ca_api, space) if root != first], leader.now())
            for replica in replicas:
                replica.shift_s = leader.shift_s
            leader.shift_s += settings.max_lifetime_s + FOLLOW_S + pki.CLOCK_SKEW_S + 1
            follower.shift_s = leader.shift_s
            await sign_and_check(replicas, Phase.STEADY)
            assert first not in published(ca_api, space)
            assert len(published(ca_api, space)) == 1
            assert all(
                chain[0].not_valid_after_utc.timestamp() <= leader.now() for chain in leaves if pki.issued_by(chain[0], first)
            )

    asyncio.run(run())


def test_published_roots_are_repaired(ca_api: ApiServer, unique: Unique) -> None:
    space, other = shop(ca_api, unique), shop(ca_api, unique)

    async def run() -> None:
        async with replica_of(ca_api) as replica:
            roots = replica.keys.roots_pem()
            # Two namespaces, two repairs, and the agents' own if it has none.  Each is seen by others before it is counted.
            writes = {"written": 4 + (not has_roots(ca_api, "nodeproxy-system", roots))}
            replica.leads = True
            replica.ca.publisher.need(space, True)
            await until(lambda: has_roots(ca_api, space, roots), "the roots are published")
            ca_api.patch("ConfigMap", ROOT_MAP, space, data={ROOT_KEY: "mine", "own": "kept"})
            await until(lambda: has_roots(ca_api, space, roots), "an edit is repaired")
            assert ca_api.get("ConfigMap", ROOT_MAP, space)["data"]["own"] == "kept"
            ca_api.delete("ConfigMap", ROOT_MAP, space)
            await until(lambda: has_roots(ca_api, space, roots), "a deletion is repaired")
            assert not has_roots(ca_api, other, roots)
            replica.ca.publisher.need(other, True)
            await until(lambda: has_roots(ca_api, other, roots), "a new namespace gets them")
            version = ca_api.get("ConfigMap", ROOT_MAP, space)["metadata"]["resourceVersion"]
            await until(lambda: replica.ca.publisher.statistics().writes == writes, f"counted: {writes}")
        async with replica_of(ca_api) as again:  # another leader finds nothing to do
            again.leads = True
            for namespace in (space, other):
                again.ca.publisher.need(namespace, True)
            await until(lambda: again.ca.publisher.statistics().stale == 0, "all is seen")
            assert again.ca.publisher.statistics().writes == {}
        assert ca_api.get("ConfigMap", ROOT_MAP, space)["metadata"]["resourceVersion"] == version

    asyncio.run(run())


def signs_with(replica: Replica, key: pki.SigningKey) -> bool:
    return pki.same_key(replica.keys.certificate, key)


def test_an_intermediate_of_cert_manager(ca_api: ApiServer, unique: Unique) -> None:
    space = shop(ca_api, unique)
    cart = ca_api.token(space, "cart", audience=AUDIENCE, pod="cart")
    root = ca_certificate("root", KEYS[0])

    def data(key: pki.SigningKey) -> dict[str, str]:
        parts = {"tls.crt": pem(ca_certificate("lower", key, root, KEYS[0])), "tls.key": sec1(key), "ca.crt": pem(root)}
        return {name: base64.b64encode(content).decode() for name, content in parts.items()}

    ca_api.delete("Secret", SECRET, HOME)  # the role names it

    async def run() -> None:
        async with client_of(ca_api) as client:
            replica = Replica(client, CaSettings(), own=False)
            waiting = asyncio.create_task(replica.ca.store.load())
            await until(lambda: replica.ca.store.statistics().reads.get("missing", 0) > 0, "it was looked for")
            ca_api.create(make("Secret", SECRET, HOME, type="kubernetes.io/tls", data=data(KEYS[1])))
            await waiting
            async with replica.running():
                replica.leads = True
                for key in (KEYS[1], KEYS[2]):
                    ca_api.patch("Secret", SECRET, HOME, data=data(key), metadata={"annotations": {ASKED: "in vain"}})
                    await until(lambda: signs_with(replica, key), "the other key is used")  # noqa: B023
                    leaf, *chain = await replica.ask(cart)
                    assert verifies(leaf, chain, [root], time.time())
                    assert len(chain) == 1

    try:
        asyncio.run(run())
    finally:
        ca_api.delete("Secret", SECRET, HOME)


def test_the_api_server_is_killed(ca_api: ApiServer, unique: Unique) -> None:
    space = shop(ca_api, unique)
    known, new = agent_token(ca_api), ca_api.token(space, "cart", audience=AUDIENCE, pod="cart")

    async def run() -> None:
        async with replica_of(ca_api) as replica:
            await replica.ask(known, identity(space, "cart"))
            ca_api.kill_apiserver()
            await replica.ask(known, identity(space, "cart"))
            assert await replica.refused(new) == "UNAVAILABLE"
            replica.shift_s += 61.0
            assert await replica.refused(known, identity(space, "cart")) == "UNAVAILABLE"
            ca_api.start_apiserver()
            await replica.ask(new)
            await replica.ask(known, identity(space, "cart"))
            assert replica.callers() == {"authenticated": 4, "review_unavailable": 2}

    asyncio.run(run())
