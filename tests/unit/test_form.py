"""What runs is of one form, compiled or pure, and of the one that was asked for; and a wheel can be made without a compiler."""

from __future__ import annotations

import importlib
import tomllib
import zipfile
from importlib.machinery import ExtensionFileLoader, SourceFileLoader
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder

from hatch_build import modules
from nodeproxy.cli.version import form

ROOT = Path(__file__).parents[2]
LISTED = modules(
    ROOT, tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]["hooks"]["custom"]
)


@pytest.mark.parametrize("path", LISTED)
def test_every_module_is_of_the_form_that_was_asked_for(path: str, request: pytest.FixtureRequest) -> None:
    wanted = request.config.getoption("--form") or form()
    module = importlib.import_module(path.removesuffix(".py").replace("/", "."))
    assert module.__spec__ is not None
    assert isinstance(module.__spec__.loader, ExtensionFileLoader if wanted == "compiled" else SourceFileLoader)


def test_the_data_path_is_on_the_list() -> None:
    for name in ("wire/connection", "proxy/tunnel", "proxy/app_socket", "proxy/poller", "proxy/outbound", "proxy/server_tunnel"):
        assert f"nodeproxy/{name}.py" in LISTED


def test_without_a_compiler_a_wheel_is_pure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CC", str(tmp_path / "no-such-compiler"))
    (wheel,) = WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    assert Path(wheel).name.endswith("-py3-none-any.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "nodeproxy/wire/connection.py" in names
    assert not [name for name in names if name.endswith(".so")]
    assert "no C compiler" in capfd.readouterr().err
