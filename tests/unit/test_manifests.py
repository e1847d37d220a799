"""The manifest in daemonset/ is what the documents and the command line say that it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

DAEMONSET = Path(__file__).parents[2] / "daemonset"


@pytest.fixture(scope="module")
def objects() -> dict[str, dict[str, Any]]:
    documents = yaml.safe_load_all((DAEMONSET / "daemonset.yaml").read_text(encoding="utf-8"))
    return {document["kind"]: document for document in documents}


@pytest.fixture
def pod(objects: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return objects["DaemonSet"]["spec"]["template"]["spec"]


@pytest.fixture
def container(pod: dict[str, Any]) -> dict[str, Any]:
    (only,) = pod["containers"]
    return only


def test_objects_belong_together(objects: dict[str, dict[str, Any]], pod: dict[str, Any]) -> None:
    assert set(objects) == {"Namespace", "ServiceAccount", "DaemonSet"}
    namespace = objects["Namespace"]["metadata"]["name"]
    assert {objects[kind]["metadata"]["namespace"] for kind in ("ServiceAccount", "DaemonSet")} == {namespace}
    assert pod["serviceAccountName"] == objects["ServiceAccount"]["metadata"]["name"]
    spec = objects["DaemonSet"]["spec"]
    assert spec["selector"]["matchLabels"].items() <= spec["template"]["metadata"]["labels"].items()


def test_has_only_the_capabilities_it_needs(container: dict[str, Any]) -> None:
    security = container["securityContext"]
    assert security["capabilities"] == {"drop": ["ALL"], "add": ["SYS_ADMIN", "NET_ADMIN", "BPF"]}
    assert (security["privileged"], security["allowPrivilegeEscalation"], security["readOnlyRootFilesystem"]) == (
        False,
        False,
        True,
    )


def test_every_capability_has_its_reason() -> None:
    lines = (DAEMONSET / "daemonset.yaml").read_text(encoding="utf-8").splitlines()
    start = next(place for place, line in enumerate(lines) if line.strip() == "add:")
    granted = [place for place in range(start + 1, start + 7) if lines[place].strip().startswith("- ")]
    assert len(granted) == 3
    assert all(lines[place - 1].strip().startswith("# ") for place in granted)


def test_does_not_talk_to_the_kubernetes_api(objects: dict[str, dict[str, Any]], pod: dict[str, Any]) -> None:
    assert objects["ServiceAccount"]["automountServiceAccountToken"] is False
    assert pod["automountServiceAccountToken"] is False


def test_mounts_what_it_names(pod: dict[str, Any], container: dict[str, Any]) -> None:
    mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert {mount["name"] for mount in mounts.values()} == set(volumes)
    for path in ("/sys/fs/bpf", "/sys/fs/cgroup", "/run/netns", "/run/nodeproxy"):
        assert volumes[mounts[path]["name"]]["hostPath"]["path"] == path
    assert mounts["/run/netns"]["mountPropagation"] == "HostToContainer"
    assert volumes["ca"]["secret"]["defaultMode"] == 0o400
    assert mounts["/etc/nodeproxy/ca"]["readOnly"]


def test_arguments_point_into_the_mounts(container: dict[str, Any]) -> None:
    verb, *options = container["args"]
    assert verb == "run"
    assert container["command"][2].endswith('exec /opt/nodeproxy/bin/nodeproxy "$@"')
    settings = dict(option.removeprefix("--").split("=", 1) for option in options)
    paths = {mount["mountPath"] for mount in container["volumeMounts"]}
    variables = {variable["name"]: variable for variable in container["env"]}
    assert variables["NODEPROXY_RUN_DIR"]["value"] in paths
    assert {settings["ca"], settings["cgroup-root"], str(Path(settings["mesh"]).parent)} <= paths
    assert settings["node"] == "$(NODE_NAME)"
    assert variables["NODE_NAME"]["valueFrom"]["fieldRef"]["fieldPath"] == "spec.nodeName"


def test_is_probed_and_scraped_where_it_listens(objects: dict[str, dict[str, Any]], container: dict[str, Any]) -> None:
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"metrics": 15020, "ready": 15021}
    for probe in ("startupProbe", "readinessProbe"):
        assert container[probe]["httpGet"] == {"path": "/healthz/ready", "port": "ready"}
    annotations = objects["DaemonSet"]["spec"]["template"]["metadata"]["annotations"]
    assert annotations["prometheus.io/port"] == str(ports["metrics"])


def test_starts_before_and_dies_after_other_pods(pod: dict[str, Any]) -> None:
    assert pod["priorityClassName"] == "system-node-critical"
    assert {"operator": "Exists"} in pod["tolerations"]
