"""The controller's manifests ask for what the code does, and for no more."""

from __future__ import annotations

from pathlib import Path

from nodeproxy.controller import leader, status
from nodeproxy.controller.ca import root_publisher
from nodeproxy.controller.ca.authority import DEFAULT_SECRET
from nodeproxy.controller.ca.serving import SERVICE
from nodeproxy.controller.settings import DEFAULT_NAMESPACE, load
from nodeproxy.translate.objects import KINDS
from tests import manifests
from tests.manifests import BASE, Object, controllers_rights, only

RIGHTS = controllers_rights()
ALL = manifests.documents(BASE)


def granted(role: Object) -> set[tuple[str, str, str, str]]:
    """(group, resource, name or "", verb)"""
    return {
        (group, resource, name, verb)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for name in rule.get("resourceNames", [""])
        for verb in rule["verbs"]
    }


def test_the_cluster_role_is_what_the_code_does() -> None:
    needed = {(kind.group, kind.plural, "", verb) for kind in KINDS.values() for verb in ("list", "watch")}
    for name in status.KINDS:
        needed |= {
            (KINDS[name].group, KINDS[name].plural, "", "get"),
            (KINDS[name].group, f"{KINDS[name].plural}/status", "", "patch"),
        }
    for kind in KINDS.values():
        if kind.optional:
            needed.add(("apiextensions.k8s.io", "customresourcedefinitions", f"{kind.plural}.{kind.group}", "get"))
    needed.add(("authentication.k8s.io", "tokenreviews", "", "create"))
    needed |= {("", "configmaps", root_publisher.DEFAULT_NAME, verb) for verb in ("list", "watch", "create", "patch")}
    assert granted(only(RIGHTS, "ClusterRole")) == needed


def test_the_role_at_home_is_what_the_code_does() -> None:
    needed = {("", "secrets", "", "create"), ("coordination.k8s.io", "leases", "", "create")}
    needed |= {("", "secrets", DEFAULT_SECRET, verb) for verb in ("get", "patch")}
    needed |= {("coordination.k8s.io", "leases", leader.NAME, verb) for verb in ("get", "patch")}
    assert granted(only(RIGHTS, "Role")) == needed


def test_nothing_is_granted_by_wildcard() -> None:
    for item in RIGHTS:
        assert "*" not in str(item.get("rules", ""))


def test_objects_belong_together() -> None:
    account = only(RIGHTS, "ServiceAccount")["metadata"]
    assert account["namespace"] == DEFAULT_NAMESPACE == only(RIGHTS, "Namespace")["metadata"]["name"]
    for kind, role in (("ClusterRoleBinding", "ClusterRole"), ("RoleBinding", "Role")):
        binding = only(RIGHTS, kind)
        assert binding["roleRef"]["name"] == only(RIGHTS, role)["metadata"]["name"]
        (subject,) = binding["subjects"]
        assert (subject["name"], subject["namespace"]) == (account["name"], account["namespace"])
    pod = only(ALL, "Deployment")["spec"]["template"]
    assert pod["spec"]["serviceAccountName"] == account["name"]
    service = only(ALL, "Service")
    assert service["metadata"]["name"] == SERVICE  # which the certificate has
    assert service["spec"]["selector"].items() <= pod["metadata"]["labels"].items()


def test_the_container_runs_the_command_with_its_ports_and_without_privileges(tmp_path: Path) -> None:
    pod = only(ALL, "Deployment")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["args"] == ["controller", "run", "--config=/etc/nodeproxy/controller.yaml"]
    (mount,) = container["volumeMounts"]
    (volume,) = pod["volumes"]
    assert (mount["mountPath"], mount["name"]) == ("/etc/nodeproxy", volume["name"])
    file = tmp_path / "controller.yaml"
    file.write_text(only(ALL, "ConfigMap", volume["configMap"]["name"])["data"]["controller.yaml"])
    config = load({}, {}, file)
    assert config.metrics is not None
    assert config.ready is not None
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"grpc-xds": config.listen.port, "metrics": config.metrics.port, "ready": config.ready.port}
    security = container["securityContext"]
    assert security["readOnlyRootFilesystem"] is True
    assert security["capabilities"] == {"drop": ["ALL"]}
