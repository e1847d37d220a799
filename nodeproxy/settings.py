"""How a command's settings are given: command line over environment over configuration file over default.

Invariants: each setting has one name (`run_dir` is `--run-dir`, `NODEPROXY_RUN_DIR` and the file's key `run-dir`), a wrong or
unknown one is an error that names the source which gave it, and nothing is half applied.  It must not know which settings there
are (`config`, `controller.settings`), nor how a command line is parsed.
"""

from __future__ import annotations

import difflib
import ipaddress
import os
import re
from collections.abc import Callable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

from nodeproxy.errors import ConfigError

ENVIRONMENT_PREFIX = "NODEPROXY_"
# A configuration file has some 15 lines; the limit is for a mistake such as naming the mesh file.
MAX_FILE_BYTES = 1 << 20
# Read by this program's other parts, not settings of a command: the client's token, and the file that settings stand in.
_OTHER_VARIABLES = frozenset({"NODEPROXY_ADMIN_TOKEN", "NODEPROXY_CONFIG"})
# Kubernetes sets such variables in every pod of a namespace with a Service whose name begins with "nodeproxy".
_SERVICE_LINK = re.compile(r"NODEPROXY_(\w+_)?(SERVICE_(HOST|PORT(_\w+)?)|PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)")


class LogFormat(StrEnum):
    """How log lines are written."""

    TEXT = "text"
    JSON = "json"


class Address(NamedTuple):
    """Where to listen or connect: a host without brackets, and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        """As it is written: "127.0.0.1:15000" or "[::1]:15000"."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Given(NamedTuple):
    """What a source says of a setting.  source: for errors; base: what a relative path is relative to."""

    text: str
    source: str
    base: Path = Path()

    def wrong(self, reason: str) -> ConfigError:
        """The error that it is wrong."""
        return ConfigError(f"{self.source}: {reason}")


Reader = Callable[[Given], Any]


class Settings:
    """The settings of one command.

    readers: how each is read, by its name.  variables: other names of the environment for it; ours win over them.
    """

    def __init__(self, readers: Mapping[str, Reader], variables: Mapping[str, tuple[str, ...]]) -> None:
        self._readers = readers
        self._others = variables

    def gather(
        self, flags: Mapping[str, str | None], environ: Mapping[str, str], config_path: Path | None = None
    ) -> dict[str, Given]:
        """What is given, by name, and by whom.  flags: by name, None is not given.  Raises ConfigError."""
        if config_path is None and environ.get("NODEPROXY_CONFIG"):
            config_path = Path(environ["NODEPROXY_CONFIG"])
        given = {} if config_path is None else self._from_file(config_path)
        given |= self._from_environment(environ)
        return given | {name: Given(value, f"--{_dashed(name)} {value}") for name, value in flags.items() if value is not None}

    def read(self, given: Mapping[str, Given]) -> dict[str, Any]:
        """The values.  Raises ConfigError."""
        return {name: self._readers[name](value) for name, value in given.items()}

    def missing(self, name: str) -> ConfigError:
        """The error that a setting without default is not given."""
        variables = " or ".join(self._variables(name))
        return ConfigError(f"{name} is not set: give --{_dashed(name)}, {variables}, or {_dashed(name)!r} in the --config file")

    def _from_environment(self, environ: Mapping[str, str]) -> dict[str, Given]:
        """What the environment says; a variable that is empty counts as not set, as charts render absent values."""
        known = {variable: name for name in self._readers for variable in self._variables(name)}
        for variable in environ:
            if variable.startswith(ENVIRONMENT_PREFIX) and not (
                variable in known or variable in _OTHER_VARIABLES or _SERVICE_LINK.fullmatch(variable)
            ):
                close = self._closest(variable.removeprefix(ENVIRONMENT_PREFIX).lower())
                advice = f"did you mean {ENVIRONMENT_PREFIX}{close.upper()}?" if close else "unset it"
                raise ConfigError(f"{variable}: there is no such setting; {advice}")
        found: dict[str, Given] = {}
        for variable, name in known.items():
            if environ.get(variable):
                found.setdefault(name, Given(environ[variable], f"{variable}={environ[variable]}"))
        return found

    def _from_file(self, path: Path) -> dict[str, Given]:
        found: dict[str, Given] = {}
        for key, value in _settings_of(path):
            where = f"{path}:{key.start_mark.line + 1}"
            name = str(key.value).replace("-", "_") if key.id == "scalar" else ""
            if name not in self._readers:
                close = self._closest(name)
                advice = f"did you mean {_dashed(close)}?" if close else "remove it"
                raise ConfigError(f"{where}: there is no setting {str(key.value)!r}; {advice}")
            if name in found:
                raise ConfigError(f"{where}: {key.value} is there twice; remove one")
            if value.id != "scalar":
                raise ConfigError(f"{where}: {key.value} must be a single value")
            if value.tag != "tag:yaml.org,2002:null":
                found[name] = Given(value.value, f"{where}: {key.value}: {value.value}", path.absolute().parent)
        return found

    def _closest(self, name: str) -> str:
        """The setting that was probably meant, or ""."""
        return next(iter(difflib.get_close_matches(name, self._readers, n=1)), "")

    def _variables(self, name: str) -> tuple[str, ...]:
        """The environment variables of a setting, ours first."""
        return (ENVIRONMENT_PREFIX + name.upper(), *self._others.get(name, ()))


def _settings_of(path: Path) -> list[tuple[Any, Any]]:
    """The keys and values of a file of settings, as YAML's nodes."""
    import yaml  # here: 20 ms that most commands need not pay

    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as exc:
        raise ConfigError(f"{path}: can't be read: {exc.strerror}") from exc
    if len(content) > MAX_FILE_BYTES:
        raise ConfigError(f"{path}: larger than {MAX_FILE_BYTES >> 20} MiB; is it a configuration file?")
    try:
        root = yaml.compose(content, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as exc:
        mark = getattr(exc, "problem_mark", None)
        where = f":{mark.line + 1}" if mark is not None else ""
        raise ConfigError(f"{path}{where}: not YAML: {getattr(exc, 'problem', None) or exc}; mend the syntax") from exc
    if root is None:
        return []
    if not isinstance(root, yaml.MappingNode):
        raise ConfigError(f"{path}:{root.start_mark.line + 1}: must be a map of settings, such as `node: node-1`")
    return list(root.value)


def _dashed(name: str) -> str:
    return name.replace("_", "-")


# ── readers: from what is given to a value, or a ConfigError ──────────────────────────────────────


def address(text: str) -> Address:
    """ADDR:PORT or [V6]:PORT, the address an IP or a host's name.  Raises ConfigError."""
    host, colon, port = text.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or not 0 < int(port) <= 65535:
        raise ConfigError(f"{text!r} is not ADDR:PORT with a port from 1 to 65535")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        if ":" not in host:
            raise ConfigError(f"{text!r}: only IPv6 addresses stand in brackets")
    elif ":" in host:
        raise ConfigError(f"{text!r}: write an IPv6 address in brackets, [::1]:{port}")
    elif re.fullmatch(r"[A-Za-z][A-Za-z0-9.-]*", host):
        return Address(host, int(port))
    try:
        return Address(str(ipaddress.ip_address(host)), int(port))
    except ValueError:
        advice = f"for all addresses write 0.0.0.0:{port} or [::]:{port}" if not host else "write it like 127.0.0.1:15000"
        raise ConfigError(f"{text!r} has no valid address; {advice}") from None


def read_path(given: Given) -> Path:
    """A path; one from a file is relative to that."""
    return Path(os.path.normpath((given.base / given.text).absolute()))


def read_path_or_off(given: Given) -> Path | None:
    """A path, or None for "off"."""
    return None if given.text.lower() == "off" else read_path(given)


def read_address_or_off(given: Given) -> Address | None:
    """ADDR:PORT, or None for "off"."""
    # YAML takes a bare `off` for a boolean, but its text is kept.
    if given.text.lower() == "off":
        return None
    try:
        return address(given.text)
    except ConfigError as exc:
        raise given.wrong(f"{exc}, nor 'off'") from exc


def read_name(given: Given) -> str:
    """The name of something in a cluster."""
    # RFC 1123, section 2.1, and the underscore of trust domains; what is told to a control plane is no place for surprises.
    if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,251}[A-Za-z0-9])?", given.text):
        raise given.wrong("a name has letters, digits, '-', '_' and '.'")
    return given.text


def read_log_format(given: Given) -> LogFormat:
    """text or json."""
    # "plain" is Istio's word for text.
    text = {"plain": "text"}.get(given.text.lower(), given.text.lower())
    try:
        return LogFormat(text)
    except ValueError:
        raise given.wrong("must be text or json") from None


def read_number(low: int, high: int) -> Callable[[Given], int]:
    """A whole number within limits."""

    def read(given: Given) -> int:
        if not given.text.isascii() or not given.text.isdigit() or not low <= int(given.text) <= high:
            raise given.wrong(f"must be a number from {low} to {high}")
        return int(given.text)

    return read
