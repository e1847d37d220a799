from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nodeproxy.lab.demo_mesh import POLICY_KEY, SERVICE_KEY, VIP, DemoPod, principal, write_mesh
from tests.mesh_files import load_mesh


@pytest.fixture
def pods(tmp_path: Path) -> dict[str, DemoPod]:
    def pod(name: str, node: str, number: int) -> DemoPod:
        host: Any = SimpleNamespace(addresses=(f"10.0.0.{number}", f"fd00::{number}"), netns_path=f"/run/netns/{name}")
        return DemoPod(name, node, host, tmp_path, tmp_path)

    return {"frontend": pod("frontend", "node-a", 2), "orders-1": pod("orders-1", "node-b", 3)}


def test_it_is_a_mesh_file_whose_names_fit_together(tmp_path: Path, pods: dict[str, DemoPod]):
    path = tmp_path / "node-a.yaml"
    write_mesh(path, "node-a", pods, pods.values(), "frontend")
    mesh = load_mesh(path)
    assert [(spec.uid, spec.netns) for spec in mesh.pods] == [(pods["frontend"].uid, "/run/netns/frontend")]
    [service] = mesh.everything.services
    assert (service.key, service.vips[0], service.ports) == (SERVICE_KEY, f"/{VIP}", {80: 8080})
    by_name = {workload.name: workload for workload in mesh.everything.workloads}
    assert {name: workload.identity for name, workload in by_name.items()} == {name: pod.identity for name, pod in pods.items()}
    assert by_name["orders-1"].policies == (POLICY_KEY,)
    [policy] = mesh.everything.policies
    assert policy.rules[0][0][0].principals[0].exact == principal("frontend")


def test_nobody_is_in_the_mesh_before_it_is_said(tmp_path: Path, pods: dict[str, DemoPod]):
    write_mesh(tmp_path / "m.yaml", "node-a", pods, (), "frontend")
    assert load_mesh(tmp_path / "m.yaml").pods == ()
