"""The agents' manifests in daemonset/ are what the documents and the command line say that they are."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from nodeproxy import config
from nodeproxy.controller.ca import root_publisher, serving
from nodeproxy.controller.ca.settings import CaSettings
from nodeproxy.controller.callers import DEFAULT_AUDIENCE
from nodeproxy.controller.settings import DEFAULT_NAMESPACE
from tests import manifests
from tests.manifests import BASE, ISTIOD, MESH_FILE, SETS, Object, only

CONFIG_FOLDER = "/etc/nodeproxy/config"


class Manifest:
    """The agents of one of the folders."""

    def __init__(self, folder: str) -> None:
        self.text = manifests.text(folder)
        self.objects = manifests.documents(folder)
        self.daemonset = only(self.objects, "DaemonSet")
        self.namespace: str = self.daemonset["metadata"]["namespace"]
        self.account = only(self.objects, "ServiceAccount", "ztunnel" if folder == ISTIOD else "nodeproxy")
        self.spec: Object = self.daemonset["spec"]
        self.pod: Object = self.spec["template"]["spec"]
        (self.container,) = self.pod["containers"]
        self.settings: Object = yaml.safe_load(only(self.objects, "ConfigMap")["data"]["agent.yaml"])
        self.variables: dict[str, Object] = {each["name"]: each for each in self.container["env"]}
        self.mounts: dict[str, Object] = {each["mountPath"]: each for each in self.container["volumeMounts"]}
        self.volumes: dict[str, Object] = {each["name"]: each for each in self.pod["volumes"]}

    def volume(self, path: str) -> Object:
        return self.volumes[self.mounts[path]["name"]]

    def read(self, tmp_path: Path) -> config.RunConfig:
        """What the agent reads from all that."""
        fields = {"spec.nodeName": "n1", "metadata.name": "p1", "metadata.namespace": self.namespace, "status.podIP": "10.0.0.9"}
        environ = {
            name: each["value"] if "value" in each else fields[each["valueFrom"]["fieldRef"]["fieldPath"]]
            for name, each in self.variables.items()
        }
        file = tmp_path / "agent.yaml"
        file.write_text(yaml.safe_dump(self.settings))
        return config.load({}, environ, file)


@pytest.fixture(scope="module", params=SETS)
def manifest(request: pytest.FixtureRequest) -> Manifest:
    return Manifest(request.param)


@pytest.fixture(scope="module")
def base() -> Manifest:
    return Manifest(BASE)


@pytest.fixture(scope="module")
def istiod() -> Manifest:
    return Manifest(ISTIOD)


@pytest.fixture(scope="module")
def mesh_file() -> Manifest:
    return Manifest(MESH_FILE)


def test_objects_belong_together(manifest: Manifest) -> None:
    namespaces = {item["metadata"].get("namespace", manifest.namespace) for item in manifest.objects}
    assert namespaces == {manifest.namespace}
    assert manifest.pod["serviceAccountName"] == manifest.account["metadata"]["name"]
    assert manifest.spec["selector"]["matchLabels"].items() <= manifest.spec["template"]["metadata"]["labels"].items()


def test_the_namespace_lets_such_pods_in(base: Manifest, mesh_file: Manifest) -> None:
    for manifest in (base, mesh_file):
        namespace = only(manifest.objects, "Namespace")
        assert namespace["metadata"]["name"] == manifest.namespace
        assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "privileged"


def test_has_only_the_capabilities_it_needs(manifest: Manifest, base: Manifest) -> None:
    security = manifest.container["securityContext"]
    finds_pods = ["SYS_PTRACE"] if manifest.namespace == base.namespace and manifest.pod.get("hostPID") else []
    assert security["capabilities"] == {"drop": ["ALL"], "add": ["SYS_ADMIN", "NET_ADMIN", "DAC_OVERRIDE", *finds_pods]}
    assert (security["privileged"], security["allowPrivilegeEscalation"], security["readOnlyRootFilesystem"]) == (
        False,
        False,
        True,
    )


def test_every_capability_has_its_reason(manifest: Manifest) -> None:
    lines = [line.strip() for line in manifest.text.splitlines()]
    granted = manifest.container["securityContext"]["capabilities"]["add"]
    assert all(lines[lines.index(f"- {name}") - 1].startswith("# ") for name in granted)


def test_only_who_must_find_pods_sees_the_nodes_processes(base: Manifest, istiod: Manifest, mesh_file: Manifest) -> None:
    assert [each.pod.get("hostPID", False) for each in (base, istiod, mesh_file)] == [True, False, False]


def test_a_roll_leaves_no_node_without_an_agent(manifest: Manifest, tmp_path: Path) -> None:
    """The next one takes over, and the one before does not end by itself, or the kubelet would start it again."""
    found = manifest.read(tmp_path)
    assert (found.takeover, found.wait_after_handover) == (True, True)
    assert manifest.spec["updateStrategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
    assert not manifest.pod.get("hostNetwork")  # two of them listen at the same ports meanwhile


def test_may_write_events_and_nothing_else(base: Manifest, istiod: Manifest, mesh_file: Manifest) -> None:
    for each in (base, istiod):
        (rule,) = only(each.objects, "ClusterRole", "nodeproxy-agent")["rules"]
        assert rule == {"apiGroups": ["events.k8s.io"], "resources": ["events"], "verbs": ["create", "patch"]}
        (subject,) = only(each.objects, "ClusterRoleBinding", "nodeproxy-agent")["subjects"]
        assert (subject["name"], subject["namespace"]) == (each.account["metadata"]["name"], each.namespace)
    assert mesh_file.pod["automountServiceAccountToken"] is False
    assert not [item for item in mesh_file.objects if "Role" in item["kind"]]


def test_mounts_what_it_names(manifest: Manifest) -> None:
    assert {mount["name"] for mount in manifest.mounts.values()} == set(manifest.volumes)
    for path in ("/sys/fs/bpf", "/sys/fs/cgroup", "/run/netns", "/run/nodeproxy"):
        assert manifest.volume(path)["hostPath"]["path"] == path
    assert manifest.mounts["/run/netns"]["mountPropagation"] == "HostToContainer"


def test_settings_point_into_the_mounts(manifest: Manifest, tmp_path: Path) -> None:
    found = manifest.read(tmp_path)
    assert manifest.container["command"][2].endswith('exec /opt/nodeproxy/bin/nodeproxy "$@"')
    assert manifest.container["args"] == ["run", f"--config={CONFIG_FOLDER}/agent.yaml"]
    assert manifest.volume(CONFIG_FOLDER)["configMap"]["name"] == only(manifest.objects, "ConfigMap")["metadata"]["name"]
    assert {str(found.run_dir), str(found.cgroup_root)} <= set(manifest.mounts)
    assert (found.node, found.pod_name, found.pod_namespace, found.pod_ip) == ("n1", "p1", manifest.namespace, "10.0.0.9")
    assert found.grace_s == manifest.pod["terminationGracePeriodSeconds"]


def test_mesh_file_and_ca_are_where_they_are_mounted(mesh_file: Manifest, tmp_path: Path) -> None:
    found = mesh_file.read(tmp_path)
    assert found.mesh is not None
    assert {str(found.ca), str(found.mesh.parent)} <= set(mesh_file.mounts)
    assert mesh_file.volume("/etc/nodeproxy/ca")["secret"]["defaultMode"] == 0o400
    assert mesh_file.mounts["/etc/nodeproxy/ca"]["readOnly"]


def test_the_control_planes_server_roots_and_token_are_where_they_are_mounted(
    base: Manifest, istiod: Manifest, tmp_path: Path
) -> None:
    for manifest, host, roots in (
        (base, serving.dns_names(DEFAULT_NAMESPACE)[0], root_publisher.DEFAULT_NAME),
        (istiod, "istiod.istio-system.svc", "istio-ca-root-cert"),
    ):
        found = manifest.read(tmp_path)
        (server,) = found.xds_address
        assert (found.source, found.ca_address, server.tls) == (config.Source.XDS, found.xds_address, True)
        assert server.address.host in (host, *serving.dns_names(DEFAULT_NAMESPACE))
        volume = manifest.volume(str(found.xds_root_ca.parent))["configMap"]
        assert (volume["name"], found.xds_root_ca.name) == (roots, root_publisher.KEY)
        assert found.auth_token is not None
        (token,) = manifest.volume(str(found.auth_token.parent))["projected"]["sources"]
        assert token["serviceAccountToken"]["path"] == found.auth_token.name
        assert token["serviceAccountToken"]["audience"] == DEFAULT_AUDIENCE


def test_the_control_planes_trust_the_agents_account(base: Manifest, istiod: Manifest) -> None:
    for manifest in (base, istiod):
        account = manifest.account["metadata"]
        assert f"{account['namespace']}/{account['name']}" in CaSettings().trusted_node_accounts
    controller = yaml.safe_load(only(base.objects, "ConfigMap")["data"]["controller.yaml"])
    assert controller["node-accounts"] == f"{base.namespace}/{base.account['metadata']['name']}"


def test_agent_and_controller_agree_on_what_the_mesh_is_called(base: Manifest) -> None:
    controller = yaml.safe_load(only(base.objects, "ConfigMap")["data"]["controller.yaml"])
    for name in ("cluster-id", "cluster-domain", "trust-domain"):
        assert base.settings[name] == controller[name]


def test_is_probed_and_scraped_where_it_listens(manifest: Manifest, tmp_path: Path) -> None:
    found = manifest.read(tmp_path)
    assert found.metrics is not None
    assert found.ready is not None
    ports = {port["name"]: port["containerPort"] for port in manifest.container["ports"]}
    assert ports == {"metrics": found.metrics.port, "ready": found.ready.port}
    assert manifest.container["readinessProbe"]["httpGet"] == {"path": "/healthz/ready", "port": "ready"}
    annotations = manifest.spec["template"]["metadata"]["annotations"]
    assert annotations["prometheus.io/port"] == str(ports["metrics"])


def test_is_not_killed_for_waiting(manifest: Manifest) -> None:
    assert not {"startupProbe", "livenessProbe"} & set(manifest.container)


def test_starts_before_and_dies_after_other_pods(manifest: Manifest) -> None:
    assert manifest.pod["priorityClassName"] == "system-node-critical"
    assert {"operator": "Exists"} in manifest.pod["tolerations"]


def test_the_cni_plug_in_is_put_where_the_node_has_them(base: Manifest, tmp_path: Path) -> None:
    found = base.read(tmp_path)
    assert base.volume(str(found.cni_conf_dir))["hostPath"]["path"] == "/etc/cni/net.d"
    assert base.volume(str(found.cni_bin_dir))["hostPath"]["path"] == "/opt/cni/bin"
    assert base.volume(str(found.node_dir))["hostPath"]["path"] == str(found.node_dir)


def test_istio_cnis_socket_is_where_it_is_mounted(istiod: Manifest, tmp_path: Path) -> None:
    found = istiod.read(tmp_path)
    assert istiod.volume(str(found.zds_socket.parent))["hostPath"]["path"] == str(found.zds_socket.parent)
