"""A real API server takes the manifests in daemonset/ as they are, every field of them."""

from __future__ import annotations

import re
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.cluster.apiserver import ApiError, ApiServer
from tests.cluster.controller import ControllerProcess, install
from tests.cluster.kinds import Object, item_path, make
from tests.manifests import SETS

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted(path.relative_to(ROOT) for path in (ROOT / "daemonset").rglob("nodeproxy*.yaml"))
EXAMPLES = sorted(path.relative_to(ROOT) for path in (ROOT / "docs" / "examples").glob("*.yaml"))
# `kubectl apply --server-side --dry-run=server --validate=strict`.
DRY_RUN = "dryRun=All&fieldValidation=Strict&fieldManager=test&force=true"


def documents(path: Path) -> list[Object]:
    return [item for item in yaml.safe_load_all((ROOT / path).read_text(encoding="utf-8")) if item]


def dry_run(api: ApiServer, item: Object) -> Object:
    metadata = item["metadata"]
    path = item_path(item["kind"], metadata["name"], metadata.get("namespace", ""))
    taken: Object = api.request("PATCH", f"{path}?{DRY_RUN}", item, content_type="application/apply-patch+yaml")
    return taken


def namespaces(api: ApiServer, items: list[Object]) -> None:
    """What namespaced objects are in must be there, also in a dry run."""
    names = {item["metadata"].get("namespace", "") for item in items} - {""}
    api.apply(*(make("Namespace", name) for name in names))


def test_there_are_manifests() -> None:
    assert {str(path) for path in FILES} >= {f"daemonset/{folder}/nodeproxy.yaml" for folder in (*SETS, "uninstall")}


@pytest.mark.parametrize("path", FILES, ids=str)
def test_a_dry_run_takes_each_object(bare_api: ApiServer, path: Path) -> None:
    items = documents(path)
    namespaces(bare_api, items)
    for item in items:
        taken = dry_run(bare_api, item)
        assert taken["metadata"]["name"] == item["metadata"]["name"]


@pytest.mark.parametrize("path", EXAMPLES, ids=str)
def test_the_documents_examples_are_manifests(api: ApiServer, path: Path) -> None:
    items = documents(path)
    namespaces(api, items)
    for item in items:
        dry_run(api, item)


def test_a_misspelt_field_would_be_seen(bare_api: ApiServer) -> None:
    items = documents(Path("daemonset/base/nodeproxy.yaml"))
    namespaces(bare_api, items)
    (agent,) = [item for item in items if item["kind"] == "DaemonSet"]
    agent["spec"]["template"]["spec"]["tolerationz"] = []
    with pytest.raises(ApiError, match="tolerationz"):
        dry_run(bare_api, agent)


@pytest.mark.parametrize(
    ("path", "kind", "level"),
    [
        ("daemonset/base/nodeproxy.yaml", "Deployment", "restricted"),
        *((f"daemonset/{folder}/nodeproxy.yaml", "DaemonSet", "privileged") for folder in (*SETS, "uninstall")),
    ],
)
def test_pods_are_let_in_by_the_pod_security_standard(
    bare_api: ApiServer, path: str, kind: str, level: str, unique: Callable[[str], str]
) -> None:
    """The controller by the strictest one; agents need what their namespace's label says."""
    space = unique("security")
    bare_api.create(make("Namespace", space, labels={"pod-security.kubernetes.io/enforce": level}))
    (owner,) = [item for item in documents(Path(path)) if item["kind"] == kind]
    template = owner["spec"]["template"]
    dry_run(bare_api, make("Pod", "one", space, labels=template["metadata"]["labels"], spec=template["spec"]))


def test_metrics_that_the_document_names_are_there(bare_api: ApiServer, tmp_path: Path) -> None:
    install(bare_api)
    named = set(re.findall(r"`(nodeproxy_controller_\w+)", (ROOT / "docs" / "kubernetes.md").read_text(encoding="utf-8")))
    named |= set(re.findall(r"`(nodeproxy_controller_\w+)", (ROOT / "docs" / "ca.md").read_text(encoding="utf-8")))
    with ControllerProcess(bare_api, tmp_path) as controller:
        controller.wait_ready()
        with urllib.request.urlopen(f"http://127.0.0.1:{controller.metrics_port}/metrics", timeout=10) as response:
            page = response.read().decode()
    # A family without a sample yet has its name in the line of its type; the older format names the sample there.
    assert named - set(re.findall(r"^# TYPE (\w+)", page, re.MULTILINE)) == set()
