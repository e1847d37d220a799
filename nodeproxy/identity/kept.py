"""Certificates that outlive the agent: so that one which is restarted while the CA is away can serve.

A file for each identity, and one for the roots, in a directory of the run directory: mode 0600, root's, in memory where that is
(/run).  Invariant: what can't be read or is over is as if it were not there; a file is there whole or not at all.  It is for a CA
that may be away: with a CA directory on the node itself nothing is kept.
It must not know what a certificate is used for.
"""

from __future__ import annotations

import hashlib
import logging
import os
from pathlib import Path

import msgspec

from nodeproxy.errors import StateError
from nodeproxy.identity.certificate import IssuedCertificate

_ROOTS = "roots"
_SUFFIX = ".certificate"

log = logging.getLogger(__name__)


class KeptCertificates:
    """The certificates of one instance."""

    def __init__(self, directory: Path, now_s: float) -> None:
        """Raises StateError if the directory can't be used."""
        self._directory = directory
        self._passed_on = False
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            directory.chmod(0o700)
            names = [entry.name for entry in os.scandir(directory)]
        except OSError as exc:
            raise StateError(f"can't keep certificates in {directory}: {exc.strerror}; choose another run directory") from exc
        self._kept: dict[str, IssuedCertificate] = {}
        for name in names:
            if name != _ROOTS:
                self._load(directory / name, now_s)

    def roots(self) -> bytes:
        """The trusted roots (PEM), b"" if none were kept."""
        try:
            return (self._directory / _ROOTS).read_bytes()
        except OSError:
            return b""

    def take(self, identity: str, now_s: float) -> IssuedCertificate | None:
        """The identity's certificate, if it is valid; once, for then the caller has it."""
        found = self._kept.pop(identity, None)
        return found if found is not None and found.not_after > now_s else None

    def pass_on(self, passed_on: bool = True) -> None:
        """Another agent keeps them from now on: what this one still has made and dropped is its own."""
        self._passed_on = passed_on

    def keep_roots(self, roots: bytes) -> None:
        """The roots as they are now."""
        self._write(_ROOTS, roots)

    def keep(self, issued: IssuedCertificate) -> None:
        """A new certificate, in place of the one before."""
        self._write(_file_name(issued.identity), msgspec.msgpack.encode(issued))

    def drop(self, identity: str) -> None:
        """Nobody uses it any more."""
        self._kept.pop(identity, None)
        if self._passed_on:
            return
        (self._directory / _file_name(identity)).unlink(missing_ok=True)

    def drop_rest(self) -> None:
        """What nobody has taken, nobody wants: pods have left while no agent ran."""
        for identity in list(self._kept):
            self.drop(identity)

    def _load(self, path: Path, now_s: float) -> None:
        try:
            issued = msgspec.msgpack.decode(path.read_bytes(), type=IssuedCertificate)
            if issued.not_after > now_s and path.name == _file_name(issued.identity):
                self._kept[issued.identity] = issued
                return
        except (OSError, msgspec.MsgspecError):
            log.warning("a kept certificate can't be read, the CA is asked for a new one: %s", path)
        path.unlink(missing_ok=True)

    def _write(self, name: str, content: bytes) -> None:
        if self._passed_on:
            return
        # No fsync: after a crash of the machine nothing of this is needed.
        beside = self._directory / f".{name}"
        try:
            with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600), "wb") as file:
                file.write(content)
            beside.replace(self._directory / name)
        except OSError as exc:
            log.warning("%s can't be kept, so a restart while the CA is away would be without it: %s", name, exc)


def _file_name(identity: str) -> str:
    return hashlib.sha256(identity.encode()).hexdigest() + _SUFFIX
