from __future__ import annotations

from nodeproxy.controller.placement import PodPlacement
from nodeproxy.translate.objects import Metadata, Pod, PodSpec, PodStatus


def pod(uid: str = "u1", node: str = "n1", account: str = "cart", phase: str = "Running", namespace: str = "shop") -> Pod:
    return Pod(
        metadata=Metadata(name="p", namespace=namespace, uid=uid),
        spec=PodSpec(node_name=node, service_account_name=account),
        status=PodStatus(phase=phase),
    )


def test_where_a_pod_is_and_what_runs_there() -> None:
    placement = PodPlacement()
    placement.apply("shop/p", pod())
    assert placement.node_of("shop", "p", "u1") == "n1"
    assert placement.node_of("shop", "p", "another uid") == ""
    assert placement.runs_on("n1", "shop", "cart")
    assert not placement.runs_on("n2", "shop", "cart")
    assert not placement.runs_on("n1", "bank", "cart")
    assert not placement.runs_on("n1", "shop", "till")


def test_the_last_pod_of_an_account_takes_it_away() -> None:
    placement = PodPlacement()
    placement.apply("shop/p", pod())
    placement.apply("shop/q", pod("u2"))
    placement.apply("shop/p", None)
    assert placement.runs_on("n1", "shop", "cart")
    placement.apply("shop/q", None)
    assert not placement.runs_on("n1", "shop", "cart")
    assert len(placement) == 0


def test_a_pod_counts_while_it_is_on_a_node_and_has_not_ended() -> None:
    placement = PodPlacement()
    placement.apply("shop/p", pod(node=""))
    assert not len(placement)
    placement.apply("shop/p", pod(phase="Pending"))
    assert placement.runs_on("n1", "shop", "cart")
    for phase in ("Succeeded", "Failed"):
        placement.apply("shop/p", pod())
        placement.apply("shop/p", pod(phase=phase))
        assert not placement.runs_on("n1", "shop", "cart")


def test_a_pod_of_the_same_name_takes_the_place_of_the_one_before() -> None:
    placement = PodPlacement()
    placement.apply("shop/p", pod())
    placement.apply("shop/p", pod("u2", node="n2", account=""))
    assert placement.node_of("shop", "p", "u1") == ""
    assert not placement.runs_on("n1", "shop", "cart")
    assert placement.runs_on("n2", "shop", "default")


def test_it_is_synced_when_it_is_told_so() -> None:
    placement = PodPlacement()
    assert not placement.synced()
    placement.all_told()
    assert placement.synced()
