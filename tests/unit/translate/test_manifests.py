from __future__ import annotations

from pathlib import Path

import pytest

from nodeproxy.errors import ConfigError
from nodeproxy.translate.manifests import files_of, read_file, read_manifests
from nodeproxy.translate.objects import Pod, Service

pytestmark = pytest.mark.unit

SERVICE = """
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop, creationTimestamp: 2026-01-01T00:00:00Z}
spec:
  ports:
  - port: 80
    targetPort: web
"""


def read(text: str, namespace: str = "default"):
    return read_manifests("f.yaml", text.encode(), namespace)


def test_documents_become_resources_with_places():
    (found,) = read(f"# nothing\n---\n---{SERVICE}---\n")
    assert isinstance(found.resource, Service)
    assert (found.kind, found.key) == ("Service", "shop/web")
    assert found.resource.metadata.creation_timestamp == "2026-01-01T00:00:00Z"
    assert [
        found.place.line(field) for field in ("", "spec.ports[0].targetPort", "spec.ports[3].x", "metadata.labels[a.b/c]")
    ] == [
        4,
        10,
        9,
        6,
    ]


def test_lists_are_opened_and_typed_ones_say_what_their_items_are():
    text = "apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Pod, metadata: {name: a}}\n"
    typed = "apiVersion: v1\nkind: PodList\nitems:\n- metadata: {name: b}\n- metadata: {name: c, namespace: x}\n"
    found = read(f"{text}---\n{typed}---\napiVersion: v1\nkind: PodList\nitems:\n", namespace="here")
    assert [item.key for item in found] == ["here/a", "here/b", "x/c"]
    assert all(isinstance(item.resource, Pod) for item in found)
    assert [item.place.line() for item in found] == [4, 9, 10]


def test_items_that_came_by_a_merge_key_have_their_place():
    (found,) = read("a: &a\n  items: [{apiVersion: v1, kind: Pod, metadata: {name: a}}]\napiVersion: v1\nkind: List\n<<: *a\n")
    assert (found.key, found.place.line()) == ("default/a", 2)


def test_a_kind_of_another_group_is_another_kind():
    gateway, knative, deployment = read(
        "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: a}\n---\n"
        "apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata: {name: a, namespace: b}\n---\n"
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: a}\n"
    )
    assert [item.known for item in (gateway, knative, deployment)] == [None] * 3
    assert [item.key for item in (gateway, knative, deployment)] == ["a", "b/a", "default/a"]


def test_null_is_nothing():
    (found,) = read("apiVersion: v1\nkind: Pod\nmetadata: {name: a, labels: null, namespace: null}\nspec:\nstatus: {podIPs: }\n")
    assert found.key == "default/a"
    assert found.resource is not None
    assert found.resource.metadata.labels == {}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [", "no YAML"),
        ("a: &a [*a]", "f.yaml:1: aliases repeat this too often"),
        ("kind: {{ .Values.kind }}", "give what `helm template` makes of it"),
        ("- 1", "f.yaml:1: a resource must be a map"),
        ("kind: Pod", "needs apiVersion"),
        ("apiVersion: v1", "needs kind"),
        ("apiVersion: v1\nkind: Pod", "metadata must be a map"),
        ("apiVersion: v1\nkind: Pod\nmetadata: {}", "f.yaml:3: Pod: metadata.name must be a name, not None"),
        ("apiVersion: v1\nkind: Pod\nmetadata: {name: a/b}", "metadata.name must be a name"),
        ("apiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: a/b}", "metadata.namespace must be a name"),
        ("apiVersion: v1\nkind: List\nitems: 3", "items must be a list"),
        (SERVICE.replace("80", "'80'"), "f.yaml:7: Service shop/web: spec.ports[0].port: expected `int`, got `str`"),
        (SERVICE.replace("80", "80:80"), "expected `int`, got `str`"),
        (SERVICE.replace("80", "0"), "f.yaml:7: Service shop/web: spec.ports[0].port: 0 is no port"),
        (SERVICE.replace("port: 80", "port: 80\n    port: 81"), "f.yaml:8: the key 'port' is there twice"),
        (SERVICE.replace("ports:", "selector: {app: yes}\n  ports:"), "expected `str`, got `bool`"),
        ("[" * 10_000, "f.yaml:1: no YAML: exceeded"),
        ("apiVersion: v1\nkind: Pod\nmetadata: !!python/object:os.system {name: a}", "no YAML"),
        (
            "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: a}\nspec: {hosts: [a/b]}",
            "spec.hosts[0]: 'a/b' is no host name",
        ),
        (
            "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: a}\nspec: {ports: [{number: 70000}]}",
            "spec.ports[0].number: 70000 is no port",
        ),
    ],
)
def test_what_an_api_server_would_refuse_is_refused_with_its_place(text: str, words: str):
    with pytest.raises(ConfigError) as error:
        read(text)
    assert words in str(error.value)


def test_a_bomb_of_aliases_is_refused():
    levels = "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 40))
    with pytest.raises(ConfigError, match="aliases repeat this too often"):
        read(f"a0: &a0 [x]\n{levels}")


def test_a_directory_is_its_manifests_and_those_below(tmp_path: Path):
    (tmp_path / "sub").mkdir()
    for name in ("b.yml", "a.yaml", "c.txt", "sub/d.json"):
        (tmp_path / name).write_text("{}")
    assert [path.name for path in files_of([str(tmp_path)])] == ["a.yaml", "b.yml", "d.json"]
    assert list(files_of(["-", "x"])) == [Path("-"), Path("x")]
    with pytest.raises(ConfigError, match="no .yaml"):
        list(files_of([str(_empty(tmp_path))]))


def _empty(path: Path) -> Path:
    (path / "empty").mkdir()
    return path / "empty"


def test_a_file_that_is_not_there_is_told(tmp_path: Path):
    with pytest.raises(ConfigError, match="can't be read: No such file"):
        read_file(tmp_path / "none.yaml")
