from __future__ import annotations

import asyncio
import json
import stat
from pathlib import Path
from typing import Any

import pytest
import yaml

from nodeproxy.errors import ConfigError
from nodeproxy.identity.pki import certificate_pem
from nodeproxy.kube import credentials as module
from nodeproxy.kube.credentials import Credentials
from tests.unit.controller.material import KEYS, ca_certificate


@pytest.fixture
def pem() -> str:
    return certificate_pem(ca_certificate("a", KEYS[0])).decode()


def kubeconfig(folder: Path, user: dict[str, Any], **cluster: Any) -> Path:
    path = folder / "kubeconfig"
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "test",
        "clusters": [{"name": "test", "cluster": {"server": "https://api.example.org:6443/", **cluster}}],
        "users": [{"name": "test", "user": user}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
    }
    path.write_text(yaml.safe_dump(content))
    return path


def read(credentials: Credentials) -> str:
    asyncio.run(credentials.read())
    return credentials.token


def test_in_a_pod_token_and_root_are_what_the_files_hold_now(tmp_path: Path, pem: str, monkeypatch: pytest.MonkeyPatch) -> None:
    token, root = tmp_path / "token", tmp_path / "ca.crt"
    monkeypatch.setattr(module, "SERVICE_TOKEN_FILENAME", str(token))
    monkeypatch.setattr(module, "SERVICE_CERT_FILENAME", str(root))
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "fd00::1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    token.write_text("first\n")
    root.write_text(pem)
    credentials = Credentials(None)
    assert read(credentials) == "Bearer first"
    assert credentials.configuration.host == "https://[fd00::1]:443"
    before = credentials.tls
    token.write_text("second")
    assert read(credentials) == "Bearer second"
    assert credentials.tls == before
    root.write_text(pem + pem)
    read(credentials)
    assert credentials.tls != before
    token.unlink()
    with pytest.raises(ConfigError, match="automountServiceAccountToken"):
        read(credentials)
    assert credentials.token == "Bearer second"


def test_a_plug_in_is_run_when_what_it_gave_has_run_out(tmp_path: Path) -> None:
    program = tmp_path / "plug-in"
    count = tmp_path / "count"

    def write(ends: str) -> None:
        status = {"token": "$(wc -c < " + str(count) + ")", "expirationTimestamp": ends}
        answer = json.dumps({"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": status})
        program.write_text(f"#!/bin/sh\nprintf x >> {count}\ncat <<END\n{answer}\nEND\n")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)

    write("2099-01-01T00:00:00Z")
    spec = {"apiVersion": "client.authentication.k8s.io/v1", "command": str(program)}
    credentials = Credentials(kubeconfig(tmp_path, {"exec": spec}))
    assert read(credentials) == "Bearer 1"
    assert read(credentials) == "Bearer 1"
    write("2001-01-01T00:00:00Z")
    kubeconfig(tmp_path, {"exec": spec}, **{"tls-server-name": "other"})  # a kubeconfig that changed is read anew
    assert read(credentials) == "Bearer 2"
    assert read(credentials) == "Bearer 3"


def test_a_plug_in_that_fails_is_told(tmp_path: Path) -> None:
    spec = {"apiVersion": "client.authentication.k8s.io/v1", "command": "/bin/false"}
    with pytest.raises(ConfigError, match="exec: process returned 1"):
        read(Credentials(kubeconfig(tmp_path, {"exec": spec})))


def test_a_root_that_is_not_there_is_told(tmp_path: Path) -> None:
    path = kubeconfig(tmp_path, {"token": "x"}, **{"certificate-authority": "missing.pem"})
    with pytest.raises(ConfigError, match=r"missing\.pem"):
        read(Credentials(path))


def test_a_context_is_chosen_and_has_a_namespace(tmp_path: Path) -> None:
    path = kubeconfig(tmp_path, {"token": "mine"})
    content = yaml.safe_load(path.read_text())
    other = {"name": "other", "context": {**content["contexts"][0]["context"], "namespace": "shop"}}
    more = tmp_path / "more"
    more.write_text(yaml.safe_dump({"contexts": [other], "clusters": [], "users": []}))
    plain = Credentials(path)
    read(plain)
    assert plain.namespace == ""
    merged = Credentials((tmp_path / "absent", path, more), "other")
    assert read(merged) == "Bearer mine"
    assert merged.namespace == "shop"
    with pytest.raises(ConfigError, match=r"more \(context third\) can't be used: .*third"):
        read(Credentials((path, more), "third"))
    with pytest.raises(ConfigError, match="absent can't be used: No such file"):
        read(Credentials((tmp_path / "absent",)))
