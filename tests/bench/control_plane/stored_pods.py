"""Pods by the hundred thousand, put into etcd as the API server keeps them.

Written through it, a pod is two requests (its creation drops the status) that cost it 6 ms of CPU: ten minutes for 100,000 on two
cores.  So it writes one; the others get what it made of that one (its defaults, its record of who set which field) in the form in
which it gives it, JSON, which it reads from etcd as well as its own.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import itertools
import json
import uuid
from collections.abc import Callable, Iterable
from typing import Any

from tests.cluster.apiserver import ApiServer
from tests.cluster.kinds import Object
from tests.mesh.cluster import wait_until

# etcd takes 128 operations and 1.5 MiB at once, and a pod is 6 KB.
_BATCH = 100
_PROGRESS = 10_000
_TIMEOUT_S = 60.0
# The API server hears of all of them from etcd, and decodes each.
_CATCH_UP_S = 300.0


class StoreError(Exception):
    """etcd did not take pods."""


def fill(api: ApiServer, pods: Iterable[Object], progress: Callable[[int], None]) -> None:
    """Put pods of one shape there, until the API server shows them.  progress(how many so far) is called now and then."""
    each = iter(pods)
    first = next(each)
    space, name = first["metadata"]["namespace"], first["metadata"]["name"]
    api.create(first)
    pattern = api.get("Pod", name, space)
    pattern["metadata"].pop("resourceVersion")  # which etcd keeps beside it
    done, last = 1, first
    with contextlib.closing(_connection(api)) as connection:
        while batch := list(itertools.islice(each, _BATCH)):
            _put(connection, [stored(pattern, pod) for pod in batch])
            last = batch[-1]
            done += len(batch)
            if done // _PROGRESS != (done - len(batch)) // _PROGRESS:
                progress(done)
    wait_until(lambda: _shown(api, last), "the API server shows the pods that were put into etcd", _CATCH_UP_S)


def stored(pattern: Object, pod: Object) -> tuple[str, str]:
    """Key and value of a pod, after one that the API server has made."""
    metadata, spec = pod["metadata"], pod["spec"]
    uid = str(uuid.uuid5(uuid.NAMESPACE_DNS, f"{metadata['name']}.{metadata['namespace']}"))
    own = {**pod, "metadata": {**metadata, "uid": uid}, "spec": {**spec, "serviceAccount": spec["serviceAccountName"]}}
    value = json.dumps(merged(pattern, own), separators=(",", ":"))
    # The record of who set which field names a pod's addresses, in keys like k:{"ip":"10.64.0.0"}.
    value = value.replace(_in_key(pattern["status"]["podIP"]), _in_key(pod["status"]["podIP"]))
    return f"/registry/pods/{metadata['namespace']}/{metadata['name']}", value


def merged(pattern: Any, over: Any) -> Any:
    """`over`, and of `pattern` what it does not say.  Lists of one length are merged element by element."""
    if isinstance(pattern, dict) and isinstance(over, dict):
        return {**pattern, **{key: merged(pattern.get(key), value) for key, value in over.items()}}
    if isinstance(pattern, list) and isinstance(over, list) and len(pattern) == len(over):
        return [merged(*pair) for pair in zip(pattern, over, strict=True)]
    return over


def _in_key(address: str) -> str:
    return json.dumps(json.dumps(address))[1:-1]


def _put(connection: http.client.HTTPConnection, pairs: Iterable[tuple[str, str]]) -> None:
    """One transaction (etcd's API as JSON: keys and values in base64)."""
    puts = [{"requestPut": {"key": _base64(key), "value": _base64(value)}} for key, value in pairs]
    connection.request("POST", "/v3/kv/txn", json.dumps({"success": puts}), {"Content-Type": "application/json"})
    response = connection.getresponse()
    content = response.read()
    if response.status != 200:
        raise StoreError(f"{response.status} {content[:300]!r}")


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _connection(api: ApiServer) -> http.client.HTTPConnection:
    connection = http.client.HTTPConnection("127.0.0.1", api.etcd_port, timeout=_TIMEOUT_S)
    with api.inside():
        connection.connect()
    return connection


def _shown(api: ApiServer, pod: Object) -> bool:
    """Whether it stands in the cache that the API server answers watches from."""
    path = f"/api/v1/namespaces/{pod['metadata']['namespace']}/pods?resourceVersion=0"
    return pod["metadata"]["name"] in {item["metadata"]["name"] for item in api.request("GET", path)["items"]}
