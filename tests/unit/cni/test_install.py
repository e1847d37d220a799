"""The plug-in into a directory of configurations and out of it, whatever others do there meanwhile."""

from __future__ import annotations

import json
import os
import random
import time
from pathlib import Path

import pytest

from nodeproxy.cni import files
from nodeproxy.cni.chain import PROGRAM, PluginSettings
from nodeproxy.cni.install import ORIGINAL, Installation
from nodeproxy.errors import ConfigError

SETTINGS = PluginSettings(Path("/run/nodeproxy/cni.sock"), Path("/var/lib/nodeproxy/cni/namespaces"), ("kube-system",))
# As others write them: their own order, spaces and ends.
FLANNEL = b'{\n  "name": "cbr0","cniVersion": "0.3.1",\n\t"plugins": [{"type":"flannel"} , {"type": "portmap"}]}'
CALICO = b'{"name": "k8s-pod-network", "cniVersion": "1.0.0", "plugins": [{"type": "calico", "mtu": 0}]}\r\n'
WEAVE = b'{ "cniVersion": "1.0.0", "name": "weave", "type": "weave-net" }'


class Node:
    def __init__(self, root: Path) -> None:
        self.conf, self.bin, self.program = root / "net.d", root / "bin", root / "program"
        self.conf.mkdir()
        self.program.write_bytes(b"a program")
        self.installation = Installation(self.conf, self.bin)

    def write(self, name: str, content: bytes, *, just_now: bool = False) -> Path:
        path = self.conf / name
        path.write_bytes(content)
        if not just_now:
            os.utime(path, (1, 1))
        return path

    def install(self, settings: PluginSettings = SETTINGS) -> tuple[Path, bool]:
        return self.installation.install(self.program, settings)

    def first(self) -> tuple[str, list[str]]:
        """What a runtime takes, and its plug-ins."""
        for name in sorted(os.listdir(self.conf)):
            if name.endswith((".conf", ".conflist", ".json")):
                try:
                    value = json.loads((self.conf / name).read_bytes())
                except ValueError:
                    continue
                return name, [each["type"] for each in value.get("plugins", [value])]
        return "", []

    def contents(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in self.conf.iterdir()}


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [("10-flannel.conflist", FLANNEL), ("05-weave.conf", WEAVE), ("10-x.json", WEAVE), ("98.conflist", CALICO)],
)
def test_in_and_out_byte_for_byte(node: Node, name: str, content: bytes) -> None:
    node.write(name, content)
    (node.conf / name).chmod(0o640)
    node.write("99-loopback.conf", b'{"cniVersion": "0.2.0", "name": "lo", "type": "loopback"}')
    node.write("README", b"not a configuration")
    before, at = node.contents(), (node.conf / name).stat()
    file, changed = node.install()
    assert changed
    first, plugins = node.first()
    assert first == file.name
    assert plugins[-1] == PROGRAM
    assert file.stat().st_mode == at.st_mode
    assert (node.bin / PROGRAM).read_bytes() == b"a program"
    assert (node.bin / PROGRAM).stat().st_mode & 0o777 == 0o755
    while_in = node.contents()
    assert node.install() == (file, False)
    assert node.contents() == while_in
    assert node.installation.uninstall()
    assert node.contents() == before
    restored = (node.conf / name).stat()
    assert (restored.st_mode, restored.st_mtime_ns, restored.st_ino) == (at.st_mode, at.st_mtime_ns, at.st_ino)
    assert list(node.bin.iterdir()) == []
    assert not node.installation.uninstall()


def test_another_cni_writes_the_chain_anew(node: Node) -> None:
    node.write("10-flannel.conflist", FLANNEL)
    node.install()
    node.write("10-flannel.conflist", CALICO)
    file, changed = node.install()
    assert changed
    assert node.first() == ("10-flannel.conflist", ["calico", PROGRAM])
    node.installation.uninstall()
    assert node.contents() == {"10-flannel.conflist": CALICO}


def test_another_cni_writes_its_single_configuration_anew(node: Node) -> None:
    node.write("10-weave.conf", WEAVE)
    node.install()
    assert node.first() == ("10-weave.conf.conflist", ["weave-net", PROGRAM])
    newer = WEAVE.replace(b"weave-net", b"weave-2")
    node.write("10-weave.conf", newer)
    node.install()
    assert node.first() == ("10-weave.conf.conflist", ["weave-2", PROGRAM])
    node.write("10-weave.conf", newer)  # and again, as we are taken out
    node.installation.uninstall()
    assert node.contents() == {"10-weave.conf": newer}


def test_another_file_becomes_the_first(node: Node) -> None:
    node.write("10-flannel.conflist", FLANNEL)
    node.install()
    node.write("05-calico.conflist", CALICO)
    node.install()
    assert node.first() == ("05-calico.conflist", ["calico", PROGRAM])
    assert (node.conf / "10-flannel.conflist").read_bytes() == FLANNEL
    (node.conf / "05-calico.conflist").unlink()
    node.install()
    assert node.first() == ("10-flannel.conflist", ["flannel", "portmap", PROGRAM])
    node.installation.uninstall()
    assert node.contents() == {"10-flannel.conflist": FLANNEL}


def test_what_somebody_changed_meanwhile_stays(node: Node) -> None:
    path = node.write("10-flannel.conflist", FLANNEL)
    node.install()
    value = json.loads(path.read_bytes())
    value["plugins"].append({"type": "bandwidth"})
    path.write_text(json.dumps(value))
    assert node.install() == (path, False)  # we need not be the last
    node.installation.uninstall()
    assert node.first() == ("10-flannel.conflist", ["flannel", "portmap", "bandwidth"])
    assert list(node.contents()) == ["10-flannel.conflist"]


def test_other_settings_change_the_entry_alone(node: Node) -> None:
    path = node.write("10-flannel.conflist", FLANNEL)
    node.install()
    node.install(PluginSettings(Path("/other.sock"), Path("/other"), ()))
    assert json.loads(path.read_bytes())["plugins"][2]["socket"] == "/other.sock"
    node.installation.uninstall()
    assert node.contents() == {"10-flannel.conflist": FLANNEL}


def test_a_newer_program_takes_the_place_of_the_older(node: Node) -> None:
    node.write("10-flannel.conflist", FLANNEL)
    file, _ = node.install()
    with (node.bin / PROGRAM).open("rb") as running:  # as one that runs: "text file busy" if it were written in place
        node.program.write_bytes(b"a newer program")
        assert node.install() == (file, True)
        assert running.read() == b"a program"
    assert (node.bin / PROGRAM).read_bytes() == b"a newer program"
    (node.bin / PROGRAM).unlink()
    assert node.install() == (file, True)


def test_no_chain_yet(node: Node) -> None:
    with pytest.raises(ConfigError, match="has no network configuration yet"):
        node.install()
    node.write("10-a.conflist", b"{")
    with pytest.raises(ConfigError, match="that can be used: 10-a.conflist is no JSON"):
        node.install()
    with pytest.raises(ConfigError, match="is this where the container runtime reads its network"):
        Installation(node.conf / "missing", node.bin).install(node.program, SETTINGS)
    node.write("10-b.conflist", FLANNEL)
    node.install()
    assert node.first() == ("10-b.conflist", ["flannel", "portmap", PROGRAM])


def test_a_file_that_is_being_written_is_waited_for(node: Node) -> None:
    """It may be the first when it is whole."""
    node.write("10-flannel.conflist", FLANNEL)
    node.write("05-calico.conflist", CALICO[:20], just_now=True)
    with pytest.raises(ConfigError, match="written just now"):
        node.install()
    assert node.first() == ("10-flannel.conflist", ["flannel", "portmap"])


def test_a_chain_that_is_too_old_is_left_alone(node: Node) -> None:
    node.write("10-old.conf", b'{"name": "old", "type": "bridge"}')
    with pytest.raises(ConfigError, match="10-old.conf is of CNI 0.1.0, which has no chains"):
        node.install()
    assert node.first() == ("10-old.conf", ["bridge"])


def test_a_file_too_large_to_be_one(node: Node) -> None:
    node.write("05-large.conflist", b" " * (2 << 20))
    node.write("10-flannel.conflist", FLANNEL)
    node.install()
    assert node.first() == ("05-large.conflist", []) or node.first()[0] == "10-flannel.conflist"
    assert (node.conf / "05-large.conflist").stat().st_size == 2 << 20


def test_a_link_stays_a_link(node: Node) -> None:
    kept = node.conf.parent / "elsewhere.conflist"
    kept.write_bytes(FLANNEL)
    (node.conf / "10-flannel.conflist").symlink_to(kept)
    node.install()
    assert kept.read_bytes() == FLANNEL
    assert node.first() == ("10-flannel.conflist", ["flannel", "portmap", PROGRAM])
    node.installation.uninstall()
    assert (node.conf / "10-flannel.conflist").readlink() == kept


def test_an_agent_with_few_capabilities(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may not give files away; where it may not write it says so."""
    node.write("10-flannel.conflist", FLANNEL)

    def refuse(*args: object, **more: object) -> None:
        raise PermissionError(1, "Operation not permitted", str(node.bin))

    monkeypatch.setattr(os, "fchown", refuse)
    node.install()
    node.installation.uninstall()
    monkeypatch.setattr(os, "rename", refuse)
    with pytest.raises(ConfigError, match="bin: the CNI plug-in can't be installed or removed: Operation not permitted; see to"):
        node.install()
    assert node.contents() == {"10-flannel.conflist": FLANNEL}


@pytest.mark.parametrize(("name", "content"), [("10-flannel.conflist", FLANNEL), ("10-weave.conf", WEAVE)])
def test_killed_at_any_step_there_is_a_whole_chain_and_the_next_goes_on(
    node: Node, name: str, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    real = {each: getattr(os, each) for each in ("rename", "link", "fsync", "unlink")}
    left = 0

    def counted(each: str) -> None:
        def step(*args: object, **more: object) -> object:
            nonlocal left
            left -= 1
            if left == 0:
                raise Killed
            if left < 0 and each == "unlink":
                return None  # who is killed tidies nothing up
            return real[each](*args, **more)

        monkeypatch.setattr(os, each, step)

    for each in real:
        counted(each)
    node.write(name, content)
    for work in (node.install, node.installation.uninstall):
        for step in range(1, 30):
            left = step
            try:
                work()
            except Killed:
                first, plugins = node.first()
                assert plugins[:1] in (["flannel"], ["weave-net"]), (work, step)
                assert plugins[-1] != PROGRAM or (node.bin / PROGRAM).exists()
            else:
                assert step > 3
                break
        left = 1 << 30
        work()
    assert node.contents() == {name: content}


def test_random_lives(node: Node) -> None:
    """Whatever others do: after a pass the first has us, once; after the last there is nothing of ours."""
    chosen = random.Random(seed := random.randrange(1 << 32))
    names = ["05-a.conf", "10-b.conflist", "10-b.conf", "20-c.json"]
    for step in range(150):
        name = chosen.choice(names)
        what = chosen.randrange(4)
        if what == 0:
            node.write(name, chosen.choice([FLANNEL, CALICO]) if name.endswith("list") else WEAVE)
        elif what == 1:
            (node.conf / name).unlink(missing_ok=True)
        elif what == 2 and chosen.random() < 0.3:
            node.installation.uninstall()
            assert not [each for each in node.contents() if "nodeproxy" in each], (seed, step)
            assert PROGRAM not in node.first()[1], (seed, step)
        try:
            node.install()
        except ConfigError:
            assert node.first()[0] == ""
        else:
            assert node.first()[1].count(PROGRAM) == 1, (seed, step)
            all_of_them = [path for path in node.conf.iterdir() if path.suffix in (".conf", ".conflist", ".json")]
            assert sum(PROGRAM.encode() in path.read_bytes() for path in all_of_them) == 1, (seed, step)
    node.installation.uninstall()
    assert not [path for path, content in node.contents().items() if PROGRAM.encode() in content or ORIGINAL in path], seed


def test_the_list_of_namespaces(tmp_path: Path) -> None:
    files.write_namespaces(tmp_path, ["shop", "bank", "shop"])
    path = tmp_path / files.NAMESPACES_FILE
    assert path.read_text() == "bank\nshop\n"
    inode = path.stat().st_ino
    files.write_namespaces(tmp_path, {"bank", "shop"})
    assert path.stat().st_ino == inode
    files.write_namespaces(tmp_path, ())
    assert path.read_text() == ""
    assert [each.name for each in path.parent.iterdir()] == ["namespaces"]
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="see to the directory, --node-dir"):
        files.write_namespaces(tmp_path / "file", ["shop"])


def test_a_pass_that_finds_all_as_it_was_is_cheap(node: Node) -> None:
    node.write("10-flannel.conflist", FLANNEL)
    node.install()
    began = time.monotonic()
    for _ in range(20):
        node.install()
    assert time.monotonic() - began < 0.05
