"""A new root for a CA, without a connection failing: for a CA directory whole, and what the controller's CA needs of it.

The new root's key is also *cross-signed* by the old root, and workloads send that certificate after their own.  So a peer that
trusts only the old root follows leaf → cross → old root, one that trusts only the new root follows leaf → new root, and nodes may
notice the change in any order.  Steps for an operator:

1. `rotate(directory)` on the CA; copy the directory to wherever else it is used.  Agents notice within seconds.
2. Wait until no certificate signed by the old root is alive: the longest lifetime of a workload's certificate (a day), or half of
   it, by when all have been renewed if none of them fails (the metrics of certificates say so).
3. `retire(directory)`: the old root is trusted no more.

Invariant: files are replaced one at a time in an order that is valid after each step (roots, cross certificate, key), so a crash
or a reader in between sees a CA that works.  It must not know who uses the directory.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from cryptography import x509

from nodeproxy.errors import ConfigError, IdentityError
from nodeproxy.identity import pki
from nodeproxy.identity.local_ca import CROSS_FILE, KEY_FILE, ROOTS_FILE, LocalCA, write_file


class Successor(NamedTuple):
    """The root to come.  cross: its key, vouched for by the root before."""

    root: x509.Certificate
    key: pki.SigningKey
    cross: x509.Certificate


def successor(trust_domain: str, root: x509.Certificate, key: pki.SigningKey, now_s: float) -> Successor:
    """A new root after `root`; IdentityError if that may vouch for none."""
    constraints = root.extensions.get_extension_for_class(x509.BasicConstraints).value
    if constraints.path_length == 0:
        raise IdentityError("the root may sign no other CA (path length 0), so nothing can vouch for a new one")
    new_key = pki.new_key()
    new_root = pki.make_root(new_key, trust_domain, now_s)
    return Successor(new_root, new_key, pki.cross_sign(new_root, new_key, root, key))


def rotate(directory: Path, *, clock: Callable[[], float] = time.time) -> str:
    """Make a new root that signs from now on, with all roots trusted; returns its name."""
    ca = LocalCA.open(directory, clock=clock)
    try:
        root, key, cross = successor(ca.trust_domain, ca.signing_root, ca.key, clock())
    except IdentityError as exc:
        raise ConfigError(
            f"{directory}: {exc}: make a new CA directory and add both roots to {ROOTS_FILE} on all nodes first"
        ) from exc
    try:
        write_file(directory / ROOTS_FILE, pki.certificate_pem(root) + ca.roots_pem, 0o644)
        write_file(directory / CROSS_FILE, pki.certificate_pem(cross), 0o644)
        write_file(directory / KEY_FILE, pki.key_pem(key), 0o600)
    except OSError as exc:
        raise ConfigError(f"can't write the new root to {directory}: {exc.strerror}; the CA goes on with the old one") from exc
    return root.subject.rfc4514_string()


def retire(directory: Path, *, clock: Callable[[], float] = time.time) -> int:
    """Trust only the root that signs; returns how many others were forgotten."""
    ca = LocalCA.open(directory, clock=clock)
    try:
        write_file(directory / ROOTS_FILE, pki.certificate_pem(ca.signing_root), 0o644)
        (directory / CROSS_FILE).unlink(missing_ok=True)
    except OSError as exc:
        raise ConfigError(f"can't write {directory}: {exc.strerror}") from exc
    return len(ca.roots) - 1
