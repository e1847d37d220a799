"""A CA in a directory: what a node without istiod gets its certificates from.

    root-cert.pem   the roots that peers are checked by, one or several, all trusted
    ca-key.pem      the key that signs, mode 0600; it belongs to one of the roots
    ca.json         {"trust_domain": …}
    cross-cert.pem  after a rotation: the signing key vouched for by the root before (see `rotation`)

Invariant: a workload's key exists in memory only; the CA's own key is the one secret on disk, and it is not used when others
could read it too.  It must not know who asks or when to renew.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
from cryptography import x509

from nodeproxy.errors import ConfigError, IdentityError
from nodeproxy.identity import pki
from nodeproxy.identity.certificate import IssuedCertificate
from nodeproxy.identity.spiffe import Spiffe, check_trust_domain

ROOTS_FILE = "root-cert.pem"
KEY_FILE = "ca-key.pem"
META_FILE = "ca.json"
CROSS_FILE = "cross-cert.pem"
# A day, as istiod's default: short enough to need no revocation, long enough to live through a CA's outage over a night.
LIFETIME_S = 86_400.0
# A CA's files are a few kilobytes; what is longer is not one of them.
MAX_FILE_BYTES = 1 << 20

Clock = Callable[[], float]


class _Meta(msgspec.Struct, forbid_unknown_fields=True):
    trust_domain: str


class LocalCA:
    """An opened CA directory.  It does not follow the files: `LocalAuthority` does."""

    def __init__(
        self, trust_domain: str, roots: list[x509.Certificate], key: pki.SigningKey, cross: x509.Certificate | None, clock: Clock
    ) -> None:
        self.trust_domain = trust_domain
        self.roots = tuple(roots)
        self.roots_pem = b"".join(pki.certificate_pem(root) for root in roots)
        self.key = key
        signing = [root for root in roots if pki.same_key(root, key)]
        if not signing:
            raise IdentityError(f"{KEY_FILE} belongs to none of the roots in {ROOTS_FILE}: put its root certificate there")
        self.signing_root = signing[0]
        # A rotation writes the cross-signed certificate before the key: until the key follows, it is not about the key in use.
        self._cross_pem = pki.certificate_pem(cross) if cross is not None and pki.same_key(cross, key) else b""
        self._clock = clock

    @classmethod
    def create(
        cls,
        directory: Path,
        trust_domain: str = "cluster.local",
        root_cert: Path | None = None,
        root_key: Path | None = None,
        *,
        clock: Clock = time.time,
    ) -> LocalCA:
        """Make a CA directory, with a root of its own or the one given; ConfigError if that can't be."""
        try:
            check_trust_domain(trust_domain)
            key, root = _given_or_new(trust_domain, root_cert, root_key, clock())
        except IdentityError as exc:
            raise ConfigError(str(exc)) from exc
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            if any(directory.iterdir()):
                raise ConfigError(
                    f"{directory} is not empty: a CA is made in a new directory only, so that no key is ever overwritten"
                )
            write_file(directory / ROOTS_FILE, pki.certificate_pem(root), 0o644)
            write_file(directory / META_FILE, msgspec.json.encode(_Meta(trust_domain)) + b"\n", 0o644)
            write_file(directory / KEY_FILE, pki.key_pem(key), 0o600)
        except OSError as exc:
            raise ConfigError(f"can't make a CA in {directory}: {exc.strerror}") from exc
        return cls(trust_domain, [root], key, None, clock)

    @classmethod
    def open(cls, directory: Path, *, clock: Clock = time.time) -> LocalCA:
        """The CA of `directory`; ConfigError if it is none or others may read its key, IdentityError if a file is broken."""
        try:
            meta = msgspec.json.decode(_read(directory, META_FILE), type=_Meta)
        except msgspec.DecodeError as exc:
            raise IdentityError(f"{directory / META_FILE} is damaged: {exc}") from exc
        check_trust_domain(meta.trust_domain)
        roots = pki.parse_roots(_read(directory, ROOTS_FILE), str(directory / ROOTS_FILE))
        key = pki.parse_key(_read(directory, KEY_FILE, secret=True), str(directory / KEY_FILE))
        cross_path = directory / CROSS_FILE
        cross = pki.parse_roots(_read(directory, CROSS_FILE), str(cross_path))[0] if cross_path.exists() else None
        try:
            return cls(meta.trust_domain, roots, key, cross, clock)
        except IdentityError as exc:
            raise IdentityError(f"{directory}: {exc}") from exc

    def issue(self, identity: str, lifetime_s: float = LIFETIME_S) -> IssuedCertificate:
        """A new key and a certificate of it for `identity`; IdentityError if it is not of this trust domain."""
        spiffe = Spiffe.parse(identity)
        if spiffe.trust_domain != self.trust_domain:
            raise IdentityError(
                f"{identity} is not of this CA's trust domain {self.trust_domain}: the workload's trustDomain must be the CA's"
            )
        key = pki.new_key()
        leaf = pki.make_leaf(identity, key.public_key(), self.signing_root, self.key, self._clock(), lifetime_s)
        return IssuedCertificate(
            identity=identity,
            chain_pem=pki.certificate_pem(leaf) + self._cross_pem,
            key_pem=pki.key_pem(key),
            not_before=leaf.not_valid_before_utc.timestamp(),
            not_after=leaf.not_valid_after_utc.timestamp(),
            serial=f"{leaf.serial_number:x}",
        )


class LocalAuthority:
    """A `CertificateAuthority` over a CA directory that notices when its files change (a rotation, a mended key)."""

    def __init__(self, directory: Path, *, lifetime_s: float = LIFETIME_S, clock: Clock = time.time) -> None:
        self._directory = directory
        self._lifetime_s = lifetime_s
        self._clock = clock
        self._seen = _stamp(directory)
        self._ca = LocalCA.open(directory, clock=clock)

    @property
    def trust_domain(self) -> str:
        """The trust domain that it signs for."""
        return self._ca.trust_domain

    async def issue(self, identity: str) -> IssuedCertificate:
        """See `CertificateAuthority`.  It runs inline: key and signature take 0.3 ms [measured]."""
        return self._current().issue(identity, self._lifetime_s)

    def roots(self) -> bytes:
        """See `CertificateAuthority`."""
        return self._current().roots_pem

    def rotated(self) -> bool:
        """See `CertificateAuthority`.  Never: `roots` follows the files, and an old key stays vouched for (`rotation`)."""
        return False

    async def close(self) -> None:
        """See `CertificateAuthority`.  Nothing is open."""

    def _current(self) -> LocalCA:
        stamp = _stamp(self._directory)  # before the files are read: a change while reading is seen as one the next time
        if stamp != self._seen:
            try:
                self._ca = LocalCA.open(self._directory, clock=self._clock)
            except ConfigError as exc:
                raise IdentityError(str(exc)) from exc
            self._seen = stamp
        return self._ca


def write_file(path: Path, content: bytes, mode: int) -> None:
    """Write `path` whole or not at all: no reader sees half a file, and no secret is readable by others for a moment."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(descriptor)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _given_or_new(
    trust_domain: str, root_cert: Path | None, root_key: Path | None, now_s: float
) -> tuple[pki.SigningKey, x509.Certificate]:
    if root_cert is None and root_key is None:
        key = pki.new_key()
        return key, pki.make_root(key, trust_domain, now_s)
    if root_cert is None or root_key is None:
        raise ConfigError("a root certificate and its key are given together: one of --root-cert and --root-key is missing")
    try:
        certificate_pem, given_key_pem = root_cert.read_bytes(), root_key.read_bytes()
    except OSError as exc:
        raise ConfigError(f"can't read {exc.filename}: {exc.strerror}") from exc
    roots = pki.parse_roots(certificate_pem, str(root_cert))
    if len(roots) != 1:
        raise ConfigError(
            f"{root_cert} holds {len(roots)} certificates: give the root that signs alone; more roots may be added afterwards"
        )
    given_key = pki.parse_key(given_key_pem, str(root_key))
    pki.check_root(roots[0], given_key, now_s)
    return given_key, roots[0]


def _read(directory: Path, name: str, *, secret: bool = False) -> bytes:
    path = directory / name
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            if secret and status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
                mode = stat.S_IMODE(status.st_mode)
                raise ConfigError(f"{path} may be read by others than its owner (mode {mode:04o}): chmod 600 {path}")
            content = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError as exc:
        raise ConfigError(f"{directory} is no CA directory: {name} is missing (make one: nodeproxy ca init {directory})") from exc
    except OSError as exc:
        raise ConfigError(f"can't read {path}: {exc.strerror}") from exc
    if len(content) > MAX_FILE_BYTES:
        raise ConfigError(f"{path} is longer than {MAX_FILE_BYTES} bytes: this is not a CA's file")
    return content


def _stamp(directory: Path) -> tuple[tuple[int, int, int] | None, ...]:
    """What tells one version of the CA's files from another: (inode, size, time of change) each, None if it is not there."""
    found: list[tuple[int, int, int] | None] = []
    for name in (META_FILE, ROOTS_FILE, KEY_FILE, CROSS_FILE):
        try:
            status = (directory / name).stat()
        except OSError:
            found.append(None)
        else:
            found.append((status.st_ino, status.st_size, status.st_ctime_ns))
    return tuple(found)
