"""The bench of control planes at a small size, and what a change costs there: counted, so that it holds on any machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.bench.control_plane import measure, objects, planes, stored
from tests.bench.control_plane.changes import Changes
from tests.bench.control_plane.measure import Plan
from tests.bench.control_plane.objects import Size
from tests.bench.control_plane.planes import PLANES, ControlPlane, Plane
from tests.bench.control_plane.subscribers import Count, Group
from tests.bench.control_plane.writer import write
from tests.cluster.apiserver import ApiError, ApiServer
from tests.cluster.kinds import Object

SIZE = Size(10, 300, 30)
PLAN = Plan(clients=5, changes=10, rate_per_s=50, rate_s=2)
NODES = [objects.node_name(number) for number in range(PLAN.clients)]
# One workload with its service, its policy's name and what is around it.
_WORKLOAD_BYTES = 700
_DEADLINE_S = 30.0
OURS = next(plane for plane in PLANES if plane.name == "nodeproxy")


@pytest.fixture(scope="module")
def cluster(api: ApiServer) -> ApiServer:
    """An API server with a cluster in it."""
    write(api, objects.first(SIZE), lambda done: None)
    write(api, objects.rest(SIZE), lambda done: None)
    for items in (objects.services(SIZE), objects.service_addresses(SIZE), objects.pods(SIZE)):
        stored.fill(api, items, lambda done: None)
    return api


@pytest.fixture(scope="module")
def control(cluster: ApiServer) -> Iterator[ControlPlane]:
    """nodeproxy's controller of it."""
    started = OURS.make(cluster)
    try:
        started.start()
        yield started
    finally:
        started.close()


@pytest.fixture
def group(cluster: ApiServer, control: ControlPlane) -> Iterator[Group]:
    """Subscribers that have everything."""
    with Group(planes.subscription(cluster, OURS, control, NODES, SIZE.resources), cluster.popen) as made:
        made.connect(PLAN.clients, _DEADLINE_S)
        yield made


@pytest.fixture
def changes(cluster: ApiServer) -> Iterator[Changes]:
    made = Changes(cluster, SIZE)
    yield made
    made.close()


def _timeless(item: Object) -> Object:
    """Without what no two objects share."""
    of_its_own = ("uid", "resourceVersion", "creationTimestamp", "managedFields")
    fields = [{key: value for key, value in each.items() if key != "time"} for each in item["metadata"]["managedFields"]]
    metadata = {key: value for key, value in item["metadata"].items() if key not in of_its_own}
    return {**item, "metadata": {**metadata, "managedFields": fields}}


def _gained(then: list[Count], now: list[Count]) -> list[Count]:
    return [Count(*(b - a for a, b in zip(*each, strict=True))) for each in zip(then, now, strict=True)]


@pytest.mark.parametrize("of", [objects.pods, objects.services])
def test_what_was_put_into_etcd_is_as_the_api_server_would_have_kept_it(
    cluster: ApiServer, of: Callable[[Size], Iterator[Object]]
) -> None:
    item = list(of(SIZE))[-1]
    where = item["kind"], item["metadata"]["name"], item["metadata"]["namespace"]
    put = cluster.get(*where)
    cluster.delete(*where)
    cluster.create(item)
    assert _timeless(put) == _timeless(cluster.get(*where))


def test_a_services_address_is_taken(cluster: ApiServer) -> None:
    taken = list(objects.services(SIZE))[-1]
    with pytest.raises(ApiError, match="provided IP is already allocated"):
        cluster.create({**taken, "metadata": {**taken["metadata"], "name": "another"}})


@pytest.mark.parametrize("plane", PLANES, ids=lambda plane: plane.name)
def test_every_row_of_the_bench_is_measured(cluster: ApiServer, plane: Plane) -> None:
    rows = dict(measure.measure(cluster, SIZE, plane, PLAN, lambda text: None))
    assert list(rows) == [row for row in measure.titles(PLAN) if not row.startswith("agent")]
    assert rows["rate"]["messages_each"] <= 1
    assert rows["rate"]["bytes_each_change"] < _WORKLOAD_BYTES
    assert 0 < rows["change"]["p50_ms"] <= rows["change"]["p99_ms"] <= rows["change"]["max_ms"]


def test_a_change_is_one_resource_for_each_subscriber(group: Group, changes: Changes) -> None:
    for _ in range(3):
        then = group.count()
        changes.one()
        group.seen(_DEADLINE_S)
        for gained in _gained(then, group.count()):
            assert (gained.messages, gained.resources) == (1, 1)
            assert gained.bytes < _WORKLOAD_BYTES


def test_many_changes_are_told_once_each(group: Group, changes: Changes) -> None:
    then = group.count()
    sent = changes.at_rate(200, 1)
    assert {group.seen(_DEADLINE_S)["mark"] for _ in sent} == set(sent)
    for gained in _gained(then, group.count()):
        assert gained.resources == len(sent)
        assert gained.messages <= len(sent)


def test_what_means_nothing_to_a_node_is_not_told(cluster: ApiServer, group: Group, changes: Changes) -> None:
    then = group.count()
    space, name = objects.pod_place(SIZE, SIZE.pods - 1)
    cluster.patch("Pod", name, space, metadata={"annotations": {"example/note": "read"}})
    changes.one()
    group.seen(_DEADLINE_S)
    assert {gained.resources for gained in _gained(then, group.count())} == {1}
