"""A mesh file as a whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from nodeproxy.agent.sources import mesh_file
from nodeproxy.agent.sources.mesh_file import parse_mesh
from nodeproxy.errors import ConfigError
from nodeproxy.model.delta import Everything, PodSpec
from tests.mesh_files import load_mesh

MESH = """\
workloads:
  - {uid: web, namespace: ns, workloadIps: [10.0.0.1], services: {ns/web.svc: {}}, authorizationPolicies: [ns/p]}
  - {uid: db, namespace: ns, workloadIps: [10.0.0.2]}
services:
  - {name: web, namespace: ns, hostname: web.svc, vips: [/10.96.0.1], ports: {80: 8080}}
policies:
  - {name: p, namespace: ns, scope: WorkloadSelector, action: Allow, rules: [[]]}
pods:
  - {uid: web, netns: /run/netns/web}
"""


def test_a_file_is_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "mesh.yaml"
    path.write_text(MESH)
    mesh = load_mesh(path)
    assert [workload.uid for workload in mesh.everything.workloads] == ["web", "db"]
    assert [service.key for service in mesh.everything.services] == ["ns/web.svc"]
    assert [policy.key for policy in mesh.everything.policies] == ["ns/p"]
    assert mesh.pods == (PodSpec("web", "/run/netns/web"),)


def test_an_empty_mesh_is_said_so() -> None:
    assert parse_mesh("f", b"{}").everything == Everything()


@pytest.mark.parametrize(
    ("old", "new", "error"),
    [
        ("uid: db", "uid: web", "f:3:5: workloads: 'web' is there twice, first in line 2; remove or rename one"),
        ("pods:", "pods:\n  - {uid: web, netns: /run/netns/b}", "f:10:5: pods: 'web' is there twice, first in line 9"),
        ("pods:", "pods:\n  - {uid: db, netns: /run/netns/web}", "f:10:5: network namespace: '/run/netns/web' is there twice"),
        ("policies:", "policies:\n  - {name: p, namespace: ns, scope: Global, action: Deny, rules: []}", "f:8:5: policies: 'ns/"),
        ("{ns/web.svc: {}}", "{ns/wbe.svc: {}}", "f:2:5: workload 'web' names the service 'ns/wbe.svc'"),
        ("[ns/p]", "[ns/q]", "f:2:5: workload 'web' names the policy 'ns/q', which is not in the file; did you mean ns/p?"),
        ("{uid: web, netns", "{uid: wbe, netns", "f:9:5: pod 'wbe' names the workload 'wbe', which is not in the file; did"),
        ("policies:", "policy:", "f:6:1: the file has no key 'policy'; did you mean policies?"),
        ("policies:\n  -", "policies:\n#  -", "f:6:10: policies says nothing; give it a value or remove it"),
        ("workloads:\n", "workloads: 5\nx:\n", "f:2:1: the file has no key 'x'"),
    ],
)
def test_a_wrong_file_is_refused_with_its_place(old: str, new: str, error: str) -> None:
    assert old in MESH
    with pytest.raises(ConfigError) as caught:
        parse_mesh("f", MESH.replace(old, new, 1).encode())
    assert str(caught.value).startswith(error)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"mesh\.yaml: can't be read: No such file or directory"):
        load_mesh(tmp_path / "mesh.yaml")
    with pytest.raises(ConfigError, match="can't be read: Is a directory"):
        load_mesh(tmp_path)


def test_a_file_that_is_far_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mesh_file, "MAX_FILE_BYTES", 1 << 20)
    path = tmp_path / "mesh.yaml"
    path.write_bytes(b" " * ((1 << 20) + 1))
    with pytest.raises(ConfigError, match="larger than 1 MiB"):
        load_mesh(path)
