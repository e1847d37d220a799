"""`compile` and `analyze`: what manifests are, to a person and to a program."""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.mesh_files import load_mesh
from tests.unit.cli.conftest import Result
from tests.unit.cli.documented import DOCUMENT, differences, examples

Run = Callable[..., Result]
ROOT = Path(__file__).parents[3]

MESH = """\
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.0.1, selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web-1, namespace: shop, labels: {app: web}}
status:
  podIP: 10.0.0.1
  conditions: [{type: Ready, status: "True"}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: p, namespace: shop}
spec:
  rules:
  - to:
    - operation:
        ports: ["80"]
        paths: [/a]
"""
SOUND = MESH.split("---\napiVersion: security")[0]


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    file = tmp_path / "shop.yaml"
    file.write_text(MESH)
    return file


def test_compile_prints_a_mesh_file_and_tells_what_it_did_not_understand(run: Run, manifest: Path, tmp_path: Path):
    result = run("compile", manifest)
    assert result.status == 0
    assert result.err.splitlines() == [
        f"{manifest}:21: AuthorizationPolicy shop/p: spec.rules[0].to[0].operation.paths"
        " is of HTTP, which a node does not see: the rule allows nothing",
        "1 thing not understood as written.",
    ]
    mesh = tmp_path / "mesh.yaml"
    mesh.write_text(result.out)
    assert [workload.uid for workload in load_mesh(mesh).everything.workloads] == ["Kubernetes//Pod/shop/web-1"]


def test_compile_in_json_is_as_documented(run: Run, manifest: Path):
    found = json.loads(run("compile", manifest, "-o", "json").out)
    assert differences(found, examples()["compile"]) == []
    found["notes"][0]["file"] = "shop.yaml"
    assert found == examples()["compile"]


def test_compile_strict_is_a_no_if_anything_was_not_understood(run: Run, manifest: Path):
    assert run("compile", "--strict", manifest).status == 1
    manifest.write_text(SOUND)
    result = run("compile", "--strict", manifest)
    assert (result.status, result.err) == (0, "")


def test_compile_takes_the_names_of_the_mesh(run: Run, manifest: Path):
    names = ("--trust-domain", "td", "--cluster-id", "c1", "--network", "n1", "--cluster-domain", "example.org")
    found = json.loads(run("compile", manifest, "-o", "json", *names).out)["mesh"]
    (workload,) = found["workloads"]
    assert (workload["uid"], workload["trustDomain"], workload["network"]) == ("c1//Pod/shop/web-1", "td", "n1")
    assert found["services"][0]["vips"] == ["n1/10.96.0.1"]
    assert found["services"][0]["hostname"] == "web.shop.svc.example.org"


def test_manifests_come_from_standard_input_directories_and_several_files(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    service, pod, policy = MESH.split("---\n")
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "a.yaml").write_text(service)
    (tmp_path / "b.yml").write_text(policy)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(pod.encode())))
    found = json.loads(run("compile", tmp_path / "d", tmp_path / "b.yml", "-", "-o", "json").out)["mesh"]
    assert [len(found[name]) for name in ("workloads", "services", "policies")] == [1, 1, 1]


def test_what_can_not_be_read_is_one_line_with_its_place(run: Run, manifest: Path):
    manifest.write_text(MESH.replace("{port: 80,", "{port: x,"))
    for command in ("compile", "analyze"):
        result = run(command, manifest)
        assert (result.status, result.out) == (1, "")
        assert result.err == (
            f"nodeproxy: error: {manifest}:4: Service shop/web: spec.ports[0].port: expected `int`, got `str`; "
            "an API server refuses that\n"
        )
    assert run("compile").status == run("analyze").status == 2


def test_analyze_tells_in_a_table_and_in_json_as_documented(run: Run, manifest: Path):
    text = run("analyze", manifest)
    assert text.status == 1
    assert text.out.splitlines()[0].split() == ["LEVEL", "WHERE", "RESOURCE", "WHAT", "ADVICE"]
    assert text.out.endswith("\n2 errors, 0 warnings.\n")
    found = json.loads(run("analyze", manifest, "-o", "json").out)
    assert differences(found, examples()["analyze"]) == []
    (expected,) = examples()["analyze"]["diagnoses"]
    assert {**expected, "file": str(manifest)} in found["diagnoses"]


def test_analyze_says_yes_to_what_is_sound_and_to_warnings_unless_strict(run: Run, manifest: Path):
    manifest.write_text(SOUND)
    assert (run("analyze", manifest).status, run("analyze", manifest).out) == (0, "Nothing found.\n")
    manifest.write_text(SOUND.replace("app: web}, ports", "app: other}, ports"))
    assert run("analyze", manifest).status == 0
    assert run("analyze", "--strict", manifest).status == 1
    assert json.loads(run("analyze", manifest, "-o", "json").out)["ok"] is True


def test_every_code_is_documented():
    sources = (ROOT / "nodeproxy" / "translate" / "analysis").glob("*.py")
    codes = {
        code
        for file in sources
        for code in re.findall(r'Level\.[A-Z]+, "([a-z-]+)"|level, "([a-z-]+)"', _joined(file))
        for code in code
    }
    section = DOCUMENT.read_text().partition("## analyze")[2].partition("```")[0]
    assert codes - {""} | {"not-understood"} == set(re.findall(r"`([a-z-]+)`", section.partition("Codes:")[2]))


def _joined(file: Path) -> str:
    return re.sub(r"\s+", " ", file.read_text())
