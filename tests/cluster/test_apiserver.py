"""What the other tests of this folder stand on: that the API server is a real one, with RBAC and tokens."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.cluster.apiserver import ApiError, ApiServer
from tests.cluster.istiod import Istiod
from tests.cluster.kinds import ambient, make, node, pod


def test_it_keeps_what_it_is_given(api: ApiServer, unique: Callable[[str], str]) -> None:
    space = unique("space")
    api.create(ambient(space), node("n1"), make("ServiceAccount", "a", space))
    made = api.create(pod("p", space, node="n1", ips=["10.0.0.7"], account="a"))
    assert made["status"]["podIP"] == "10.0.0.7"
    api.kill_apiserver()
    api.start_apiserver()
    assert api.get("Pod", "p", space)["metadata"]["uid"] == made["metadata"]["uid"]
    api.apply(make("AuthorizationPolicy", "deny", space, spec={"action": "DENY", "rules": []}))
    assert api.list("AuthorizationPolicy", space)


def test_an_account_may_do_nothing_of_itself(api: ApiServer, unique: Callable[[str], str]) -> None:
    space = unique("space")
    api.create(ambient(space), make("ServiceAccount", "a", space))
    token = api.token(space, "a")
    with pytest.raises(ApiError, match="403"):
        api.request("GET", "/api/v1/pods", token=token)


def test_istiod_runs_on_it(api: ApiServer, istiod: Istiod) -> None:
    assert b"BEGIN CERTIFICATE" in istiod.roots().read_bytes()
