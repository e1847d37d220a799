"""The agents' manifests in daemonset/ are what the documents and the command line say that they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from nodeproxy import config
from nodeproxy.controller import root_publisher, serving
from nodeproxy.controller.ca_settings import CaSettings
from nodeproxy.controller.callers import DEFAULT_AUDIENCE
from nodeproxy.controller.settings import DEFAULT_NAMESPACE

DAEMONSET = Path(__file__).parents[2] / "daemonset"
WITH_FILE, WITH_CONTROL_PLANE = "daemonset.yaml", "agent.yaml"
Object = dict[str, Any]


class Manifest:
    """One of the files."""

    def __init__(self, name: str) -> None:
        self.text = (DAEMONSET / name).read_text(encoding="utf-8")
        self.objects: dict[str, Object] = {each["kind"]: each for each in yaml.safe_load_all(self.text)}
        self.spec: Object = self.objects["DaemonSet"]["spec"]
        self.pod: Object = self.spec["template"]["spec"]
        (self.container,) = self.pod["containers"]
        verb, *options = self.container["args"]
        assert verb == "run"
        self.settings = dict(option.removeprefix("--").split("=", 1) for option in options)
        self.variables: dict[str, Object] = {each["name"]: each for each in self.container["env"]}
        self.mounts: dict[str, Object] = {each["mountPath"]: each for each in self.container["volumeMounts"]}
        self.volumes: dict[str, Object] = {each["name"]: each for each in self.pod["volumes"]}

    def volume(self, path: str) -> Object:
        return self.volumes[self.mounts[path]["name"]]


@pytest.fixture(scope="module", params=[WITH_FILE, WITH_CONTROL_PLANE])
def manifest(request: pytest.FixtureRequest) -> Manifest:
    return Manifest(request.param)


@pytest.fixture(scope="module")
def with_file() -> Manifest:
    return Manifest(WITH_FILE)


@pytest.fixture(scope="module")
def with_control_plane() -> Manifest:
    return Manifest(WITH_CONTROL_PLANE)


def test_objects_belong_together(manifest: Manifest) -> None:
    namespaces = {manifest.objects[kind]["metadata"]["namespace"] for kind in ("ServiceAccount", "DaemonSet")}
    assert len(namespaces) == 1
    assert manifest.pod["serviceAccountName"] == manifest.objects["ServiceAccount"]["metadata"]["name"]
    assert manifest.spec["selector"]["matchLabels"].items() <= manifest.spec["template"]["metadata"]["labels"].items()


def test_the_namespace_lets_such_pods_in(with_file: Manifest, with_control_plane: Manifest) -> None:
    controller = yaml.safe_load_all((DAEMONSET / "controller" / "rbac.yaml").read_text(encoding="utf-8"))
    (beside,) = [each for each in controller if each["kind"] == "Namespace"]
    for manifest, namespace in ((with_file, with_file.objects["Namespace"]), (with_control_plane, beside)):
        assert namespace["metadata"]["name"] == manifest.objects["DaemonSet"]["metadata"]["namespace"]
        assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "privileged"


def test_has_only_the_capabilities_it_needs(manifest: Manifest) -> None:
    security = manifest.container["securityContext"]
    assert security["capabilities"] == {"drop": ["ALL"], "add": ["SYS_ADMIN", "NET_ADMIN", "BPF"]}
    assert (security["privileged"], security["allowPrivilegeEscalation"], security["readOnlyRootFilesystem"]) == (
        False,
        False,
        True,
    )


def test_every_capability_has_its_reason(manifest: Manifest) -> None:
    lines = manifest.text.splitlines()
    start = next(place for place, line in enumerate(lines) if line.strip() == "add:")
    granted = [place for place in range(start + 1, start + 7) if lines[place].strip().startswith("- ")]
    assert len(granted) == 3
    assert all(lines[place - 1].strip().startswith("# ") for place in granted)


def test_does_not_talk_to_the_kubernetes_api(manifest: Manifest) -> None:
    assert manifest.objects["ServiceAccount"]["automountServiceAccountToken"] is False
    assert manifest.pod["automountServiceAccountToken"] is False


def test_mounts_what_it_names(manifest: Manifest) -> None:
    assert {mount["name"] for mount in manifest.mounts.values()} == set(manifest.volumes)
    for path in ("/sys/fs/bpf", "/sys/fs/cgroup", "/run/netns", "/run/nodeproxy"):
        assert manifest.volume(path)["hostPath"]["path"] == path
    assert manifest.mounts["/run/netns"]["mountPropagation"] == "HostToContainer"


def test_arguments_point_into_the_mounts(manifest: Manifest) -> None:
    assert manifest.container["command"][2].endswith('exec /opt/nodeproxy/bin/nodeproxy "$@"')
    assert manifest.variables["NODEPROXY_RUN_DIR"]["value"] in manifest.mounts
    assert manifest.settings["cgroup-root"] in manifest.mounts
    assert manifest.settings["node"] == "$(NODE_NAME)"
    assert manifest.variables["NODE_NAME"]["valueFrom"]["fieldRef"]["fieldPath"] == "spec.nodeName"


def test_mesh_file_and_ca_are_where_they_are_mounted(with_file: Manifest) -> None:
    assert {with_file.settings["ca"], str(Path(with_file.settings["mesh"]).parent)} <= set(with_file.mounts)
    assert with_file.volume("/etc/nodeproxy/ca")["secret"]["defaultMode"] == 0o400
    assert with_file.mounts["/etc/nodeproxy/ca"]["readOnly"]


def test_the_settings_are_those_of_a_node_with_the_controller(with_control_plane: Manifest) -> None:
    """What the manifest says, and what it leaves to defaults, is read as the agent reads it."""
    fields = {"spec.nodeName": "n1", "metadata.name": "p1", "metadata.namespace": DEFAULT_NAMESPACE, "status.podIP": "10.0.0.9"}
    environ = {
        name: each["value"] if "value" in each else fields[each["valueFrom"]["fieldRef"]["fieldPath"]]
        for name, each in with_control_plane.variables.items()
    }
    flags = {name.replace("-", "_"): value.replace("$(NODE_NAME)", "n1") for name, value in with_control_plane.settings.items()}
    found = config.load(flags, environ)
    assert (found.node, found.pod_name, found.pod_namespace, found.pod_ip) == ("n1", "p1", DEFAULT_NAMESPACE, "10.0.0.9")
    assert found.source is config.Source.XDS
    assert found.ca_address == found.xds_address
    (server,) = found.xds_address
    assert server.tls
    assert server.address.host in serving.dns_names(DEFAULT_NAMESPACE)
    roots = with_control_plane.volume(str(found.xds_root_ca.parent))["configMap"]
    assert (roots["name"], found.xds_root_ca.name) == (root_publisher.DEFAULT_NAME, root_publisher.KEY)
    assert found.auth_token is not None
    (token,) = with_control_plane.volume(str(found.auth_token.parent))["projected"]["sources"]
    assert token["serviceAccountToken"]["path"] == found.auth_token.name
    assert token["serviceAccountToken"]["audience"] == DEFAULT_AUDIENCE


def test_the_controller_trusts_the_agents_account(with_control_plane: Manifest) -> None:
    account = with_control_plane.objects["ServiceAccount"]["metadata"]
    assert f"{account['namespace']}/{account['name']}" in CaSettings().trusted_node_accounts


def test_is_probed_and_scraped_where_it_listens(manifest: Manifest) -> None:
    ports = {port["name"]: port["containerPort"] for port in manifest.container["ports"]}
    assert ports == {"metrics": 15020, "ready": 15021}
    assert manifest.container["readinessProbe"]["httpGet"] == {"path": "/healthz/ready", "port": "ready"}
    annotations = manifest.spec["template"]["metadata"]["annotations"]
    assert annotations["prometheus.io/port"] == str(ports["metrics"])


def test_is_not_killed_for_waiting_for_a_control_plane(with_file: Manifest, with_control_plane: Manifest) -> None:
    assert with_file.container["startupProbe"]["httpGet"] == {"path": "/healthz/ready", "port": "ready"}
    assert not {"startupProbe", "livenessProbe"} & set(with_control_plane.container)


def test_starts_before_and_dies_after_other_pods(manifest: Manifest) -> None:
    assert manifest.pod["priorityClassName"] == "system-node-critical"
    assert {"operator": "Exists"} in manifest.pod["tolerations"]


def test_the_two_differ_in_their_source_alone(with_file: Manifest, with_control_plane: Manifest) -> None:
    """What one is found to need, the other needs as well."""
    for key in ("securityContext", "image", "command", "ports", "resources", "readinessProbe"):
        assert with_file.container[key] == with_control_plane.container[key], key
    for key in ("securityContext", "tolerations", "nodeSelector", "terminationGracePeriodSeconds", "priorityClassName"):
        assert with_file.pod[key] == with_control_plane.pod[key], key
    both = set(with_file.volumes) & set(with_control_plane.volumes)
    assert set(with_file.volumes) - both == {"mesh", "ca"}
    assert set(with_control_plane.volumes) - both == {"token", "roots"}
    assert all(with_file.volumes[name] == with_control_plane.volumes[name] for name in both)
