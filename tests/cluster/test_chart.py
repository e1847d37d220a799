"""The Helm chart and the kustomize bases, by Helm and kubectl themselves and against a real API server."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.cluster.apiserver import ApiServer, peer_binary
from tests.cluster.kinds import Object, make
from tests.manifests import BASE, DAEMONSET, SETS, documents, only, text

CHART = str(DAEMONSET / "chart")


def run(program: str, *arguments: str, kubeconfig: Path | None = None) -> str:
    """Standard output; what it wrote to standard error is the failure's text."""
    home = {"HOME": "/nonexistent", "PATH": os.environ["PATH"], "KUBECONFIG": str(kubeconfig or "/dev/null")}
    done = subprocess.run(
        [str(peer_binary(program)), *arguments], env=home, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def template(*arguments: str) -> list[Object]:
    out = run("helm", "template", "nodeproxy", CHART, "--kube-version", "1.36", "--namespace", "mesh", *arguments)
    return [item for item in yaml.safe_load_all(out) if item]


@pytest.mark.parametrize("folder", SETS)
def test_what_is_checked_in_is_what_the_chart_makes(folder: str) -> None:
    namespace = yaml.safe_load((DAEMONSET / folder / "kustomization.yaml").read_text())["namespace"]
    made = run(
        "helm", "template", "nodeproxy", CHART, "--kube-version", "1.36", "--namespace", namespace,
        "--values", str(DAEMONSET / folder / "values.yaml"),
    )  # fmt: skip
    assert made == text(folder), "run ./dev manifests"


def test_the_chart_is_sound() -> None:
    run("helm", "lint", "--strict", CHART)


def test_values_are_used() -> None:
    items = template(
        "--set", "image.repository=registry.example/np,image.tag=1.2.3,image.pullSecrets[0].name=pull",
        "--set", "agent.settings.same-node=hbone,agent.graceSeconds=60,controller.replicas=3,mesh.network=west",
        "--set", "podMonitor.enabled=true", "--set-json", "agent.settings.workers=2e6",
    )  # fmt: skip
    agent, controller = (only(items, kind)["spec"] for kind in ("DaemonSet", "Deployment"))
    for template_ in (agent["template"]["spec"], controller["template"]["spec"]):
        assert template_["containers"][0]["image"] == "registry.example/np:1.2.3"
        assert template_["imagePullSecrets"] == [{"name": "pull"}]
    assert agent["template"]["spec"]["terminationGracePeriodSeconds"] == 65
    assert controller["replicas"] == 3
    settings = {name: yaml.safe_load(value) for name, value in only(items, "ConfigMap")["data"].items()}
    assert settings["agent.yaml"]["same-node"] == "hbone"
    assert settings["agent.yaml"]["grace-s"] == 65
    assert settings["agent.yaml"]["network"] == settings["controller.yaml"]["network"] == "west"
    assert settings["agent.yaml"]["workers"] == 2_000_000
    assert settings["controller.yaml"]["node-accounts"] == "mesh/nodeproxy"
    assert only(items, "PodMonitor")["spec"]["podMetricsEndpoints"] == [{"port": "metrics", "path": "/metrics"}]


def test_without_cni_nothing_of_it_is_mounted() -> None:
    agent = only(template("--set", "cni.enabled=false"), "DaemonSet")
    assert "cni" not in str(agent["spec"]["template"]["spec"]["volumes"])


def test_a_change_of_settings_rolls_the_pods() -> None:
    def mark(*arguments: str) -> list[str]:
        pods = [only(template(*arguments), kind)["spec"]["template"] for kind in ("DaemonSet", "Deployment")]
        return [pod["metadata"]["annotations"]["nodeproxy.io/config"] for pod in pods]

    assert mark() == mark()
    assert not set(mark()) & set(mark("--set", "agent.settings.workers=4"))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ("controlPlane=consul", "value must be one of 'controller', 'istiod', 'file'"),
        ("controller.replicas=two", "'/controller/replicas': got string, want integer"),
        ("agent.graceSeconds=1m", "'/agent/graceSeconds': got string, want integer"),
        ("cni.enabled=maybe", "'/cni/enabled': got string, want boolean"),
        ("cni.confDir=etc", "'/cni/confDir': 'etc' does not match"),
        ("image=registry.example/np", "'/image': got string, want object"),
        ("mesh.network=a: b", "'/mesh/network'"),
        ("agnt.settings.workers=3", "additional properties 'agnt' not allowed"),
        ("agent.settings.sameNode=hbone", "'sameNode' does not match"),
        ("agent.settings.same-node[0]=hbone", "'/agent/settings/same-node': got array"),
        ("agent.settings.grace-s=3", "agent.settings.grace-s: the chart sets this itself, by its other values"),
    ],
)
def test_what_no_pod_could_start_with_is_refused_by_helm(values: str, said: str) -> None:
    with pytest.raises(AssertionError, match=re.escape(said)):
        template("--set", values)


def test_the_schema_knows_each_value_and_its_type() -> None:
    schema = json.loads((DAEMONSET / "chart" / "values.schema.json").read_text())
    values = yaml.safe_load((DAEMONSET / "chart" / "values.yaml").read_text())
    assert set(schema["properties"]) - {"global"} == set(values)
    for name, part in values.items():
        if isinstance(part, dict):
            assert set(schema["properties"][name]["properties"]) == set(part)


def test_no_setting_can_be_given_twice() -> None:
    """The programs refuse a file that says something twice, so the chart either refuses it or leaves its own out."""
    helpers = (DAEMONSET / "chart" / "templates" / "_helpers.tpl").read_text()
    refused = {who: set(re.findall(r'"([a-z-]+)"', names)) for who, names in re.findall(r'"(\w+)" \(list ([^)]*)\)', helpers)}
    changed = {"agent": {"log-format", "cni-exempt-namespaces"}, "controller": {"log-format"}}
    made = only(template(*(f"--set={who}.settings.{name}=x" for who, names in changed.items() for name in names)), "ConfigMap")[
        "data"
    ]
    for who, names in changed.items():
        own = {
            name
            for folder in SETS
            for name in yaml.safe_load(only(documents(folder), "ConfigMap")["data"].get(f"{who}.yaml", "{}"))
        }
        assert own - names <= refused[who]
        assert all(re.findall(rf"^{name}: (.*)", made[f"{who}.yaml"], re.MULTILINE) == ['"x"'] for name in names)


@pytest.mark.parametrize("folder", [*SETS, "uninstall"])
def test_kubectl_takes_the_base(bare_api: ApiServer, folder: str) -> None:
    kubeconfig = bare_api.kubeconfig()
    bare_api.apply(make("Namespace", "nodeproxy-system"), make("Namespace", "istio-system"))
    out = run(
        "kubectl", "apply", "--server-side", "--dry-run=server", "--validate=strict", "-k", str(DAEMONSET / folder),
        kubeconfig=kubeconfig,
    )  # fmt: skip
    assert f"daemonset.apps/nodeproxy{'-uninstall' if folder == 'uninstall' else ''} serverside-applied" in out


def test_helm_installs_changes_and_removes_it(bare_api: ApiServer) -> None:
    kubeconfig = bare_api.kubeconfig()
    values = str(DAEMONSET / BASE / "values.yaml")
    where = ["nodeproxy", "--namespace", "helm", "--set", "namespace.create=false"]
    said = run("helm", "install", *where[:1], CHART, *where[1:], "--create-namespace", "--values", values, kubeconfig=kubeconfig)
    for line in (
        "kubectl label namespace helm pod-security.kubernetes.io/enforce=privileged",
        "kubectl -n helm rollout status deployment/nodeproxy-controller",
        "kubectl -n helm rollout status daemonset/nodeproxy",
        "nodeproxy status -A --system-namespace helm",
    ):
        assert f"\n  {line}\n" in said.partition("NOTES:")[2]
    first = bare_api.get("DaemonSet", "nodeproxy", "helm")["spec"]["template"]["metadata"]["annotations"]
    run("helm", "upgrade", *where[:1], CHART, *where[1:], "--set", "agent.settings.workers=3", kubeconfig=kubeconfig)
    second = bare_api.get("DaemonSet", "nodeproxy", "helm")["spec"]["template"]["metadata"]["annotations"]
    assert first != second
    run("helm", "uninstall", "nodeproxy", "--namespace", "helm", kubeconfig=kubeconfig)
    for kind in ("DaemonSet", "Deployment", "ConfigMap", "ServiceAccount"):
        left = [item["metadata"]["name"] for item in bare_api.list(kind, "helm")]
        assert not [name for name in left if name.startswith("nodeproxy")], kind
