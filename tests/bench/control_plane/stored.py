"""Objects by the ten thousand, put into etcd as the API server keeps them.

Through it, a pod is two requests (its creation drops the status) that cost it 6 ms of CPU, and a service is dearer the more there
are: it counts all addresses for each.  100,000 and 10,000 took twenty minutes.  So it makes one of a kind, and the others get
what it made of that one (defaults, the record of who set which field) in the form in which it gives it, JSON, which it reads from
etcd as well as its own.
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

from tests.cluster.apiserver import ApiError, ApiServer
from tests.cluster.kinds import Object, item_path, list_path
from tests.mesh.cluster import wait_until

# Where it keeps them.
_PLACES = {"Pod": "pods", "Service": "services/specs", "IPAddress": "ipaddresses"}
# etcd takes 128 operations and 1.5 MiB at once, and a pod is 6 KB.
_BATCH = 100
_PROGRESS = 10_000
_TIMEOUT_S = 60.0
# The API server hears of all of them from etcd, and decodes each.
_CATCH_UP_S = 300.0


class StoreError(Exception):
    """etcd did not take objects."""


def fill(api: ApiServer, objects: Iterable[Object], progress: Callable[[int], None]) -> None:
    """Put objects of one kind and shape there, until the API server shows them.  progress(how many): now and then."""
    each = iter(objects)
    last = next(each)
    pattern = _made(api, last)
    pattern["metadata"].pop("resourceVersion")  # which etcd keeps beside it
    done = 1
    with contextlib.closing(_connection(api)) as connection:
        while batch := list(itertools.islice(each, _BATCH)):
            _put(connection, [stored(pattern, item) for item in batch])
            last = batch[-1]
            done += len(batch)
            if done // _PROGRESS != (done - len(batch)) // _PROGRESS:
                progress(done)
    wait_until(lambda: _shown(api, last), "the API server shows what was put into etcd", _CATCH_UP_S)


def stored(pattern: Object, item: Object) -> tuple[str, str]:
    """Key and value of an object, after one of its kind that the API server has made."""
    metadata = item["metadata"]
    place = "/".join(filter(None, (_PLACES[item["kind"]], metadata.get("namespace", ""), metadata["name"])))
    own = {**item, "metadata": {**metadata, "uid": str(uuid.uuid5(uuid.NAMESPACE_URL, place))}}
    value = json.dumps(merged(pattern, own), separators=(",", ":"))
    if "podIP" in item.get("status", {}):
        # The record of who set which field names a pod's addresses, in keys like k:{"ip":"10.64.0.0"}.
        value = value.replace(_in_key(pattern["status"]["podIP"]), _in_key(item["status"]["podIP"]))
    return f"/registry/{place}", value


def merged(pattern: Any, over: Any) -> Any:
    """`over`, and of `pattern` what it does not say.  Lists of one length are merged element by element."""
    if isinstance(pattern, dict) and isinstance(over, dict):
        return {**pattern, **{key: merged(pattern.get(key), value) for key, value in over.items()}}
    if isinstance(pattern, list) and isinstance(over, list) and len(pattern) == len(over):
        return [merged(*pair) for pair in zip(pattern, over, strict=True)]
    return over


def _made(api: ApiServer, item: Object) -> Object:
    """What the API server makes of an object, or has made of it already."""
    name, space = item["metadata"]["name"], item["metadata"].get("namespace", "")
    try:
        return api.get(item["kind"], name, space)
    except ApiError:
        api.create(item)
        return api.get(item["kind"], name, space)


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


def _shown(api: ApiServer, item: Object) -> bool:
    """Whether it stands in the cache that the API server answers watches from."""
    kind, name, space = item["kind"], item["metadata"]["name"], item["metadata"].get("namespace", "")
    if space:
        items = api.request("GET", f"{list_path(kind, space)}?resourceVersion=0")["items"]
        return name in {each["metadata"]["name"] for each in items}
    try:
        return bool(api.request("GET", f"{item_path(kind, name)}?resourceVersion=0"))
    except ApiError as error:
        if error.status != 404:
            raise
        return False
