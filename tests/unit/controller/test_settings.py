from __future__ import annotations

from pathlib import Path

import pytest

from nodeproxy.cli.commands import nodeproxy
from nodeproxy.controller import settings
from nodeproxy.controller.settings import _READERS, ControllerConfig, load
from nodeproxy.errors import ConfigError
from nodeproxy.settings import Address, LogFormat


@pytest.fixture(autouse=True)
def outside_of_a_pod(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(settings, "_OWN_NAMESPACE", tmp_path / "namespace")
    return tmp_path / "namespace"


def test_without_anything_the_defaults_hold() -> None:
    config = load({}, {})
    assert config == ControllerConfig(pod_name=config.pod_name)
    assert config.pod_name
    assert (config.listen, config.namespace) == (Address("0.0.0.0", 15012), "nodeproxy-system")


def test_in_a_pod_the_namespace_is_the_pods(outside_of_a_pod: Path) -> None:
    outside_of_a_pod.write_text("mine\n")
    assert load({}, {}).namespace == "mine"
    assert load({"namespace": "other"}, {}).namespace == "other"


def test_flags_win_over_the_environment_and_that_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("cluster-id: file\nnetwork: file\ntrust-domain: file\nkubeconfig: k.yaml\n")
    environ = {"NODEPROXY_CLUSTER_ID": "environment", "NODEPROXY_NETWORK": "environment", "LOG_FORMAT": "json"}
    config = load({"cluster_id": "flag", "network": None}, environ, file)
    assert (config.cluster_id, config.network, config.trust_domain) == ("flag", "environment", "file")
    assert config.kubeconfig == tmp_path / "k.yaml"
    assert config.log_format is LogFormat.JSON


def test_lists() -> None:
    config = load({"node_accounts": "a/b, c/d", "serving_names": "istiod.istio-system.svc,*.example.org"}, {})
    assert config.node_accounts == {"a/b", "c/d"}
    assert config.serving_names == ("istiod.istio-system.svc", "*.example.org")


@pytest.mark.parametrize(
    ("flag", "value", "said"),
    [
        ("listen", "off", "is not ADDR:PORT"),
        ("node_accounts", "nodeproxy", "'nodeproxy' is not NAMESPACE/ACCOUNT"),
        ("serving_names", "a,b c", "'b c' is no DNS name"),
        ("serving_names", ",".join(f"n{n}" for n in range(65)), "at most 64"),
        ("ca_secret", "nodeproxy-ca", "is the controller's own"),
        ("trust_domain", "a/b", "a name has letters"),
        ("metrics", "x", "nor 'off'"),
    ],
)
def test_what_is_wrong_names_the_flag(flag: str, value: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        load({flag: value}, {})
    assert f"--{flag.replace('_', '-')} {value}" in str(caught.value)


def test_an_unknown_variable_is_an_error_that_says_which_was_meant() -> None:
    with pytest.raises(ConfigError, match="NODEPROXY_CLUSTER_IDS: there is no such setting; did you mean NODEPROXY_CLUSTER_ID?"):
        load({}, {"NODEPROXY_CLUSTER_IDS": "x"})


def test_the_command_has_an_option_for_each_setting() -> None:
    group = nodeproxy.commands["controller"]
    options = {parameter.name for parameter in group.commands["run"].params}  # type: ignore[attr-defined]
    assert options == {*_READERS, "config_path"}
