"""A network configuration of a container runtime, as text, with our plug-in in its chain and without.

Invariant: nothing but our entry differs between the two, whatever else stands there.  No I/O.  It must not know where the
configuration lies, nor which of several a runtime takes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec

from nodeproxy.errors import ConfigError

PROGRAM = "nodeproxy-cni"  # the name of the plug-in's file, and so its "type"
# Before 0.3.0 a plug-in is not told the result of the one before it, so that there are no chains.
_NO_CHAINS = ("", "0.1.0", "0.2.0")


class PluginSettings(msgspec.Struct, frozen=True):
    """What the plug-in is told: paths as they are on the node.

    exempt: namespaces whose pods never wait for an agent that is away.
    """

    socket: Path
    namespaces_file: Path
    exempt: tuple[str, ...]

    def entry(self) -> dict[str, Any]:
        """Its entry in a chain."""
        return {
            "type": PROGRAM,
            "socket": str(self.socket),
            "namespacesFile": str(self.namespaces_file),
            "exemptNamespaces": list(self.exempt),
        }


class Chain:
    """A configuration that was read.  single: of one plug-in, as a file that is no `.conflist` is."""

    def __init__(self, content: bytes, single: bool) -> None:
        """Raises ConfigError for what no runtime would take."""
        try:
            value = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"is no JSON: {error}") from error
        if not isinstance(value, dict):
            raise ConfigError("is no JSON object")
        self.single = single
        plugins = [value] if single else value.get("plugins")
        if (
            not isinstance(plugins, list)
            or not plugins
            or not all(isinstance(each, dict) and each.get("type") for each in plugins)
        ):
            raise ConfigError("lists no plug-ins, each with a type")
        self._value = value
        self._plugins: list[dict[str, Any]] = plugins

    @property
    def types(self) -> list[str]:
        """Its plug-ins, in their order."""
        return [each["type"] for each in self._plugins]

    @property
    def ours(self) -> dict[str, Any] | None:
        """Our entry, None if it is not in."""
        return next((each for each in self._plugins if each["type"] == PROGRAM), None)

    def with_entry(self, entry: dict[str, Any]) -> bytes:
        """A list with this entry at its end.  Raises ConfigError if this can be no chain."""
        value = self._value
        if self.single:
            value = {key: self._value[key] for key in ("cniVersion", "name") if key in self._value} | {"plugins": [self._value]}
        version = value.get("cniVersion", "")
        if version in _NO_CHAINS:
            raise ConfigError(f"is of CNI {version or '0.1.0'}, which has no chains: give it a cniVersion of 0.3.1 or later")
        return _text(value | {"plugins": [*self._others(), entry]})

    def without_entry(self) -> bytes:
        """The list without ours."""
        return _text(self._value | {"plugins": self._others()})

    def says_as(self, other: Chain) -> bool:
        """Whether, but for our entry, it says what the other does; of a single one, what it became as a list."""
        if other.single:
            return self._others() == other._others() and self._value.get("name") == other._value.get("name")
        return self._value | {"plugins": self._others()} == other._value | {"plugins": other._others()}

    def _others(self) -> list[dict[str, Any]]:
        return [each for each in self._plugins if each["type"] != PROGRAM]


def _has_type(plugin: object) -> bool:
    return isinstance(plugin, dict) and isinstance(plugin.get("type"), str) and plugin["type"] != ""


def _text(value: dict[str, Any]) -> bytes:
    return json.dumps(value, indent=2, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"
