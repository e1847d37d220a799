from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path

import pytest

from nodeproxy import settings
from nodeproxy.config import Address, EnrolmentMode, LogFormat, RunConfig, SameNode, Source, Upstream, address, load
from nodeproxy.errors import ConfigError

FLAGS = {"node": "n1", "mesh": "/m.yaml", "ca": "/ca"}


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "nodeproxy.yaml"
    path.write_text(text)
    return path


def test_the_least_that_must_be_said_and_the_defaults():
    loaded = load(FLAGS, {})
    assert loaded == RunConfig(
        node="n1",
        mesh=Path("/m.yaml"),
        ca=Path("/ca"),
        instance="default",
        cgroup_root=None,
        admin=Address("127.0.0.1", 15000),
        metrics=Address("0.0.0.0", 15020),
        ready=Address("0.0.0.0", 15021),
        workers=min(2, len(os.sched_getaffinity(0))),
        same_node=SameNode.DIRECT,
        run_dir=Path("/run/nodeproxy/default"),
        log_format=LogFormat.TEXT,
        grace_s=30,
    )


def test_the_least_for_a_control_plane():
    loaded = load({"node": "n1", "xds_address": "https://istiod.istio-system.svc:15012"}, {})
    istiod = Upstream(Address("istiod.istio-system.svc", 15012), tls=True)
    assert loaded == dataclasses.replace(
        load(FLAGS, {}),
        source=Source.XDS,
        enrolment=EnrolmentMode.COMMAND,
        mesh=None,
        ca=None,
        xds_address=(istiod,),
        ca_address=(istiod,),
    )
    assert (loaded.auth_token, loaded.secret_ttl_s) == (Path("/var/run/secrets/tokens/istio-token"), 86_400)


def test_several_addresses():
    loaded = load({"node": "n1", "xds_address": "a.example:1, https://[::1]:2,http://127.0.0.1:3/"}, {})
    assert [str(each) for each in loaded.xds_address] == ["https://a.example:1", "https://[::1]:2", "http://127.0.0.1:3"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"mesh": "/m", "ca": "/ca", "xds_address": "x:1"}, "mesh and xds_address are both set: say which is the source"),
        ({"source": "xds"}, "xds_address is not set: give --xds-address, NODEPROXY_XDS_ADDRESS or XDS_ADDRESS"),
        ({"source": "file", "ca": "/ca"}, "mesh is not set"),
        ({}, "mesh is not set"),
        ({"source": "xds", "xds_address": "x:1", "mesh": "/m"}, "--mesh /m: means nothing with source xds"),
        (
            {"source": "file", "xds_address": "x:1", "mesh": "/m", "ca": "/ca"},
            "--xds-address x:1: means nothing with source file",
        ),
        ({"xds_address": "x:1", "ca": "/ca", "ca_address": "x:2"}, "--ca-address x:2: there is a CA directory, too (--ca /ca)"),
        ({"mesh": "/m", "ca": "/ca", "xds_on_demand": "on"}, "--xds-on-demand on: a mesh file is read as a whole"),
        ({"xds_address": "x:1", "xds_on_demand": "perhaps"}, "--xds-on-demand perhaps: must be true or false"),
        ({"source": "dns"}, "--source dns: must be file or xds"),
        (
            {"xds_address": "http://x:1"},
            "--xds-address http://x:1: 'http://x:1': without TLS only on this machine; write https://x:1",
        ),
        ({"xds_address": "tcp://x:1"}, "--xds-address tcp://x:1: 'tcp://x:1': must be https://HOST:PORT"),
        ({"xds_address": "x"}, "--xds-address x: 'x' is not ADDR:PORT"),
        ({"xds_address": ",".join(["x:1"] * 17)}, f"--xds-address {','.join(['x:1'] * 17)}: 17 addresses; at most 16"),
        ({"xds_address": "x:1", "secret_ttl_s": "1d"}, "--secret-ttl-s 1d: must be a duration, such as 24h"),
        ({"xds_address": "x:1", "secret_ttl_s": "30s"}, "--secret-ttl-s 30s: must be from 60 to 7776000 seconds"),
        ({"xds_address": "x:1", "pod_ip": "here"}, "--pod-ip here: is no IP address"),
        ({"xds_address": "x:1", "cluster_id": "a b"}, "--cluster-id a b: a name has"),
    ],
)
def test_what_does_not_fit_together(flags: dict[str, str], message: str):
    with pytest.raises(ConfigError, match="^" + re.escape(message)):
        load({"node": "n1"} | flags, {})


def test_state_of_a_control_plane_with_a_local_ca_and_the_other_way_round():
    mixed = load({"node": "n1", "xds_address": "x:1", "ca": "/ca"}, {})
    assert (mixed.source, mixed.ca, mixed.ca_address) == (Source.XDS, Path("/ca"), ())
    mixed = load({"node": "n1", "mesh": "/m", "ca_address": "x:1"}, {})
    assert (mixed.source, mixed.ca, len(mixed.ca_address)) == (Source.FILE, None, 1)


@pytest.mark.parametrize(("text", "seconds"), [("24h", 86_400), ("1h30m", 5400), ("90m0s", 5400), ("3600", 3600)])
def test_durations(text: str, seconds: int):
    assert load(FLAGS, {"SECRET_TTL": text}).secret_ttl_s == seconds


def test_metadata():
    environ = {"ISTIO_META_ENABLE_HBONE": "true", "ISTIO_META_A": "b", "ISTIO_METB": "c"}
    assert load(FLAGS, environ).metadata == (("A", "b"), ("ENABLE_HBONE", "true"))


@pytest.mark.parametrize(("missing", "variables"), [("node", "NODEPROXY_NODE or NODE_NAME"), ("ca", "NODEPROXY_CA")])
def test_what_is_missing_is_named_with_all_its_sources(missing: str, variables: str):
    flags = {name: value for name, value in FLAGS.items() if name != missing}
    with pytest.raises(
        ConfigError, match=f"^{missing} is not set: give --{missing}, {variables}, or '{missing}' in the --config file$"
    ):
        load(flags, {})


def test_command_line_over_environment_over_istio_name_over_file_over_default(tmp_path: Path):
    file = written(tmp_path, "grace-s: 11\nlog_format: json\nnode: of-file\n")
    environ = {"NODEPROXY_GRACE_S": "13", "TERMINATION_GRACE_PERIOD_SECONDS": "12"}
    base = {"mesh": "/m", "ca": "/ca", "node": None}
    assert load(base | {"grace_s": "14"}, environ, file).grace_s == 14
    assert load(base, environ, file).grace_s == 13
    assert load(base, {"TERMINATION_GRACE_PERIOD_SECONDS": "12"}, file).grace_s == 12
    from_file = load(base, {}, file)
    assert (from_file.grace_s, from_file.log_format, from_file.node) == (11, LogFormat.JSON, "of-file")


def test_every_setting_can_come_from_every_source(tmp_path: Path):
    given = {
        "node": "n2",
        "source": "xds",
        "xds_address": "https://x:1,https://y:2",
        "xds_on_demand": "true",
        "enrolment": "labels",
        "zds_socket": "/run/zds.sock",
        "standing_connections": "destroy",
        "ca_address": "https://z:3",
        "xds_root_ca": "/roots",
        "ca_root_ca": "/roots-of-ca",
        "auth_token": "off",
        "cluster_id": "c",
        "cluster_domain": "d.example",
        "network": "net",
        "trust_domain": "td",
        "secret_ttl_s": "1h",
        "pod_name": "p",
        "pod_namespace": "ns",
        "pod_ip": "10.0.0.1",
        "kube_api": "10.96.0.1:443",
        "kube_account": "/account",
        "instance": "blue",
        "cgroup_root": "/sys/fs/cgroup/x",
        "kubelet_cgroup": "/system.slice/kubelet.service",
        "admin": "[::1]:1",
        "metrics": "off",
        "ready": "10.0.0.1:3",
        "workers": "16",
        "same_node": "hbone",
        "takeover": "true",
        "wait_after_handover": "yes",
        "run_dir": "/r",
        "node_dir": "/var/n",
        "cni_conf_dir": "/etc/net.d",
        "cni_bin_dir": "/bin/cni",
        "cni_plugin": "/libexec/plugin",
        "cni_exempt_namespaces": "kube-system,a-b",
        "log_format": "json",
        "grace_s": "9",
    }
    assert {*given, "mesh", "ca", "metadata"} == {field.name for field in dataclasses.fields(RunConfig)}
    by_flag = load(given, {})
    by_environment = load({}, {f"NODEPROXY_{name.upper()}": value for name, value in given.items()})
    lines = "".join(f"{name.replace('_', '-')}: '{value}'\n" for name, value in given.items())
    by_file = load({}, {"NODEPROXY_CONFIG": str(written(tmp_path, lines))})
    assert by_flag == by_environment == by_file
    assert (by_flag.metrics, by_flag.admin, by_flag.workers) == (None, Address("::1", 1), 16)


def test_istio_names_that_charts_set():
    names = {"XDS_ADDRESS": "https://istiod:15012", "CA_ADDRESS": "https://ca:15012", "XDS_ROOT_CA": "/x", "CA_ROOT_CA": "/c"}
    names |= {
        "AUTH_TOKEN": "/t",
        "CLUSTER_ID": "c",
        "CLUSTER_DOMAIN": "d",
        "NETWORK": "n",
        "TRUST_DOMAIN": "td",
        "SECRET_TTL": "1h",
        "XDS_ON_DEMAND": "true",
    }
    names |= {"POD_NAME": "p", "POD_NAMESPACE": "ns", "INSTANCE_IP": "10.0.0.1", "NODE_NAME": "n"}
    ours = {"xds_address": "https://istiod:15012", "ca_address": "https://ca:15012", "xds_root_ca": "/x", "ca_root_ca": "/c"}
    ours |= {"auth_token": "/t", "cluster_id": "c", "cluster_domain": "d", "network": "n", "trust_domain": "td"}
    ours |= {
        "xds_on_demand": "yes",
        "secret_ttl_s": "1h",
        "pod_name": "p",
        "pod_namespace": "ns",
        "pod_ip": "10.0.0.1",
        "node": "n",
    }
    assert load({}, names) == load(ours, {})
    environ = {"NODE_NAME": "n", "LOCAL_XDS_PATH": "/x", "LOG_FORMAT": "plain", "TERMINATION_GRACE_PERIOD_SECONDS": "60"}
    loaded = load({"ca": "/ca"}, environ)
    assert (loaded.node, loaded.mesh, loaded.log_format, loaded.grace_s) == ("n", Path("/x"), LogFormat.TEXT, 60)


@pytest.mark.parametrize(("text", "meant"), [("AUTO", "auto"), ("off", "off"), ("/a/b.slice", "/a/b.slice")])
def test_whose_probes_pass(text: str, meant: str):
    assert load(FLAGS | {"kubelet_cgroup": text}, {}).kubelet_cgroup == meant


@pytest.mark.parametrize("text", ["on", "kubelet.service", "/", "/../x"])
def test_what_is_no_kubelet_s_cgroup(text: str):
    with pytest.raises(ConfigError, match="must be auto, off, or a cgroup's path"):
        load(FLAGS | {"kubelet_cgroup": text}, {})


@pytest.mark.parametrize(
    ("environ", "flags", "found"),
    [
        ({}, {}, None),
        ({"KUBERNETES_SERVICE_HOST": "10.96.0.1", "KUBERNETES_SERVICE_PORT": "443"}, {}, Address("10.96.0.1", 443)),
        ({"KUBERNETES_SERVICE_HOST": "fd00::1", "KUBERNETES_SERVICE_PORT": "443"}, {}, Address("fd00::1", 443)),
        ({"KUBERNETES_SERVICE_HOST": "10.96.0.1", "KUBERNETES_SERVICE_PORT": "443"}, {"kube_api": "off"}, None),
        ({"KUBERNETES_SERVICE_HOST": "10.96.0.1"}, {"kube_api": "api.example:6443"}, Address("api.example", 6443)),
    ],
)
def test_the_api_server_is_the_one_that_kubernetes_tells_pods_of(environ, flags, found):
    assert load(FLAGS | flags, environ).kube_api == found


def test_an_api_server_that_cannot_be_is_named_with_what_says_it():
    with pytest.raises(ConfigError, match="KUBERNETES_SERVICE_HOST, KUBERNETES_SERVICE_PORT: .*; or give --kube-api"):
        load(FLAGS, {"KUBERNETES_SERVICE_HOST": "x", "KUBERNETES_SERVICE_PORT": "tcp"})


def test_run_directory_follows_the_instance():
    assert load(FLAGS | {"instance": "blue"}, {}).run_dir == Path("/run/nodeproxy/blue")
    assert load(FLAGS | {"instance": "blue", "run_dir": "/here"}, {}).run_dir == Path("/here")


@pytest.mark.parametrize(("grace_s", "drain_s"), [("30", 25), ("6", 1), ("5", 1), ("1", 1)])
def test_drain_leaves_the_agent_five_seconds(grace_s: str, drain_s: int):
    assert load(FLAGS | {"grace_s": grace_s}, {}).drain_s == drain_s


def test_paths_are_relative_to_who_named_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = written(tmp_path, "mesh: m.yaml\n")
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    loaded = load({"node": "n", "ca": "../ca"}, {}, file)
    assert (loaded.mesh, loaded.ca) == (tmp_path / "m.yaml", tmp_path / "ca")


def test_one_core_gets_one_worker_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {3})
    assert load(FLAGS, {}).workers == 1
    assert load(FLAGS | {"workers": "4"}, {}).workers == 4


@pytest.mark.parametrize(
    ("flags", "environ", "message"),
    [
        ({}, {"NODEPROXY_WORKERS": "abc"}, "NODEPROXY_WORKERS=abc: must be a number from 1 to 16"),
        ({"enrolment": "cni"}, {}, "--enrolment cni: must be file, command, labels or zds"),
        ({"enrolment": "labels"}, {}, "--enrolment labels: labels are told by nodeproxy's controller: it needs source xds"),
        ({"standing_connections": "end"}, {}, "--standing-connections end: must be keep or destroy"),
        (
            {"cni_conf_dir": "/c"},
            {},
            "--cni-conf-dir /c: the CNI plug-in puts pods into the mesh by their labels: it needs enrolm",
        ),
        ({"cni_exempt_namespaces": "a,B"}, {}, "--cni-exempt-namespaces a,B: 'B' is no namespace's name"),
        ({"same_node": "proxy"}, {}, "--same-node proxy: must be direct or hbone"),
        ({"workers": "17"}, {}, "--workers 17: must be a number from 1 to 16"),
        ({"workers": "0"}, {}, "--workers 0: must be a number from 1 to 16"),
        ({"workers": "²"}, {}, "--workers ²: must be a number from 1 to 16"),
        ({"grace_s": "-1"}, {}, "--grace-s -1: must be a number from 1 to 86400"),
        ({}, {"LOG_FORMAT": "xml"}, "LOG_FORMAT=xml: must be text or json"),
        (
            {"instance": "A_b"},
            {},
            "--instance A_b: an instance's name has 1 to 40 of a-z, 0-9 and '-', and not '-' first: 'A_b' is none",
        ),
        ({"instance": "x" * 41}, {}, f"--instance {'x' * 41}: an instance's name"),
        ({"instance": ""}, {}, "--instance : an instance's name"),
        ({"node": "a b"}, {}, "--node a b: a node's name has"),
        ({"admin": "1.2.3.4"}, {}, "--admin 1.2.3.4: '1.2.3.4' is not ADDR:PORT with a port from 1 to 65535, nor 'off'"),
        ({}, {"NODEPROXY_WORKER": "2"}, "NODEPROXY_WORKER: there is no such setting; did you mean NODEPROXY_WORKERS?"),
        ({}, {"NODEPROXY_ZZZZZZZ": "2"}, "NODEPROXY_ZZZZZZZ: there is no such setting; unset it"),
    ],
)
def test_a_wrong_value_names_the_source_that_gave_it(flags: dict[str, str], environ: dict[str, str], message: str):
    with pytest.raises(ConfigError, match="^" + re.escape(message)):
        load(FLAGS | flags, environ)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("node: n\nworkerz: 2\n", ":2: there is no setting 'workerz'; did you mean workers?"),
        ("node: n\nrun_dri: 2\n", ":2: there is no setting 'run_dri'; did you mean run-dir?"),
        ("qqqqqq: 2\n", ":1: there is no setting 'qqqqqq'; remove it"),
        ("node: n\nnode: m\n", ":2: node is there twice; remove one"),
        ("\nnode: [n]\n", ":2: node must be a single value"),
        ("[1]: n\n", ":1: there is no setting"),
        ("- node\n", ":1: must be a map of settings"),
        ("node: 'n\n", ":2: not YAML: found unexpected end of stream; mend the syntax"),
        ("\n\nworkers: many\n", ":3: workers: many: must be a number from 1 to 16"),
    ],
)
def test_a_broken_file_is_named_with_its_line(tmp_path: Path, text: str, message: str):
    file = written(tmp_path, text)
    with pytest.raises(ConfigError, match="^" + re.escape(f"{file}{message}")):
        load(FLAGS, {}, file)


def test_a_file_that_is_not_there_or_is_something_else(tmp_path: Path):
    with pytest.raises(ConfigError, match="can't be read: No such file or directory"):
        load(FLAGS, {}, tmp_path / "none")
    with pytest.raises(ConfigError, match="not YAML"):
        load(FLAGS, {}, written(tmp_path, "\x00"))
    large = written(tmp_path, "")
    os.truncate(large, settings.MAX_FILE_BYTES + 1)
    with pytest.raises(ConfigError, match="larger than 1 MiB; is it a configuration file"):
        load(FLAGS, {}, large)


def test_empty_values_say_nothing(tmp_path: Path):
    file = written(tmp_path, "workers:\ngrace-s: ~\nmetrics: off\n")
    loaded = load(FLAGS, {"NODEPROXY_INSTANCE": "", "LOG_FORMAT": ""}, file)
    assert (loaded.grace_s, loaded.instance, loaded.metrics) == (30, "default", None)
    assert load(FLAGS, {}, written(tmp_path, "# nothing\n")).node == "n1"


@pytest.mark.parametrize(
    "variable",
    [
        "NODEPROXY_ADMIN_TOKEN",
        "NODEPROXY_SERVICE_HOST",
        "NODEPROXY_SERVICE_PORT_METRICS",
        "NODEPROXY_PORT",
        "NODEPROXY_PORT_15020_TCP_ADDR",
        "NODEPROXY_METRICS_PORT_15020_TCP",
    ],
)
def test_variables_of_other_parts_and_of_kubernetes_services_are_let_be(variable: str):
    assert load(FLAGS, {variable: "tcp://10.0.0.1:80"}) == load(FLAGS, {})


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:15000", "127.0.0.1", 15000),
        ("[::1]:1", "::1", 1),
        ("[FE80:0::1]:65535", "fe80::1", 65535),
        ("node-1.example:80", "node-1.example", 80),
    ],
)
def test_addresses(text: str, host: str, port: int):
    assert address(text) == (host, port)
    assert address(str(address(text))) == (host, port)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("::1:80", "brackets"),
        ("[1.2.3.4]:80", "only IPv6"),
        (":80", "0.0.0.0:80"),
        ("1.2.3:80", "like 127.0.0.1:15000"),
        ("1.2.3.4:0", "port"),
        ("1.2.3.4:65536", "port"),
        ("1.2.3.4:x", "port"),
        ("", "port"),
        ("[::g]:1", "like"),
    ],
)
def test_wrong_addresses(text: str, message: str):
    with pytest.raises(ConfigError, match=re.escape(message)):
        address(text)
