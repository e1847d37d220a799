"""The controller's manifests ask for what the code does, and for no more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from nodeproxy.cli.commands import nodeproxy
from nodeproxy.controller import leader, root_publisher, status
from nodeproxy.controller.ca import DEFAULT_SECRET
from nodeproxy.controller.serving import SERVICE
from nodeproxy.controller.settings import DEFAULT_NAMESPACE, ControllerConfig
from nodeproxy.translate.objects import KINDS

FOLDER = Path(__file__).parents[2] / "daemonset" / "controller"
Object = dict[str, Any]


def documents(name: str) -> list[Object]:
    return [item for item in yaml.safe_load_all((FOLDER / name).read_text(encoding="utf-8")) if item]


def of_kind(items: list[Object], kind: str) -> Object:
    (found,) = [item for item in items if item["kind"] == kind]
    return found


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
    assert granted(of_kind(documents("rbac.yaml"), "ClusterRole")) == needed


def test_the_role_at_home_is_what_the_code_does() -> None:
    needed = {("", "secrets", "", "create"), ("coordination.k8s.io", "leases", "", "create")}
    needed |= {("", "secrets", DEFAULT_SECRET, verb) for verb in ("get", "patch")}
    needed |= {("coordination.k8s.io", "leases", leader.NAME, verb) for verb in ("get", "patch")}
    assert granted(of_kind(documents("rbac.yaml"), "Role")) == needed


def test_nothing_is_granted_by_wildcard() -> None:
    for item in documents("rbac.yaml"):
        assert "*" not in str(item.get("rules", ""))


def test_objects_belong_together() -> None:
    rbac, deployed = documents("rbac.yaml"), documents("deployment.yaml")
    account = of_kind(rbac, "ServiceAccount")["metadata"]
    assert account["namespace"] == DEFAULT_NAMESPACE == of_kind(rbac, "Namespace")["metadata"]["name"]
    for kind, role in (("ClusterRoleBinding", "ClusterRole"), ("RoleBinding", "Role")):
        binding = of_kind(rbac, kind)
        assert binding["roleRef"]["name"] == of_kind(rbac, role)["metadata"]["name"]
        (subject,) = binding["subjects"]
        assert (subject["name"], subject["namespace"]) == (account["name"], account["namespace"])
    assert {item["metadata"]["namespace"] for item in deployed} == {DEFAULT_NAMESPACE}
    pod = of_kind(deployed, "Deployment")["spec"]["template"]
    assert pod["spec"]["serviceAccountName"] == account["name"]
    service = of_kind(deployed, "Service")
    assert service["metadata"]["name"] == SERVICE  # which the certificate has
    assert service["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
    assert documents("kustomization.yaml")[0]["resources"] == ["rbac.yaml", "deployment.yaml"]


def test_the_container_runs_the_command_with_its_ports_and_without_privileges() -> None:
    (container,) = of_kind(documents("deployment.yaml"), "Deployment")["spec"]["template"]["spec"]["containers"]
    assert container["args"][:2] == ["controller", "run"]
    command = nodeproxy.commands["controller"].commands["run"]  # type: ignore[attr-defined]
    options = {option for parameter in command.params for option in parameter.opts}
    assert {argument.partition("=")[0] for argument in container["args"][2:]} <= options
    config = ControllerConfig()
    assert config.metrics is not None
    assert config.ready is not None
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"grpc-xds": config.listen.port, "metrics": config.metrics.port, "ready": config.ready.port}
    security = container["securityContext"]
    assert security["readOnlyRootFilesystem"] is True
    assert security["capabilities"] == {"drop": ["ALL"]}


@pytest.mark.parametrize("name", ["rbac.yaml", "deployment.yaml"])
def test_every_file_says_what_it_is_for(name: str) -> None:
    assert (FOLDER / name).read_text(encoding="utf-8").startswith("# ")
