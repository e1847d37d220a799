"""Where the API server is and how to prove who we are: a kubeconfig, or what Kubernetes mounts into a pod.

The library (kubernetes_asyncio) reads both, with exec plug-ins; what it does not do is to look again.  Invariant: whatever a file
holds now, be it token, root or client certificate, is used within `PERIOD_S`, and at once when the server says 401.  It must not
know requests.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from kubernetes_asyncio.client import Configuration
from kubernetes_asyncio.config import ConfigException
from kubernetes_asyncio.config.incluster_config import SERVICE_CERT_FILENAME, SERVICE_TOKEN_FILENAME, InClusterConfigLoader
from kubernetes_asyncio.config.kube_config import KubeConfigLoader, KubeConfigMerger

from nodeproxy.errors import ConfigError

PERIOD_S = 60.0  # as client-go re-reads token files each minute; the kubelet renews a token 12 minutes or more before its end


class Credentials:
    """What a request is made with.  Fill it by `read` before use.

    configuration: the library's; token: the Authorization header's value, "" for none; tls: tells whether a connection that
    stands was made with what the files hold now.
    """

    def __init__(self, kubeconfig: Path | Sequence[Path] | None, context: str = "") -> None:
        """kubeconfig: a file, or several, merged as kubectl does it; None: a pod's mounts.  context: "" for the current one."""
        self.configuration = Configuration()
        self.token = ""
        self.tls = b""
        self.namespace = ""  # the context's, "" if it names none
        self._files = () if kubeconfig is None else (kubeconfig,) if isinstance(kubeconfig, Path) else tuple(kubeconfig)
        self._context = context
        self._loader: KubeConfigLoader | None = None
        self._loaded = b""

    async def read(self) -> None:
        """Read the files anew (exec plug-ins only when what they gave has run out).  Raises ConfigError, and keeps what was."""
        try:
            configuration = Configuration()
            if not self._files:
                InClusterConfigLoader(SERVICE_TOKEN_FILENAME, SERVICE_CERT_FILENAME, try_refresh_token=False).load_and_set(
                    configuration
                )
            else:
                loader = self._kubeconfig_loader()
                await loader.load_and_set(configuration)
                self.namespace = str((loader.current_context or {}).get("context", {}).get("namespace", ""))
            tls = _fingerprint(configuration)
        # AssertionError, KeyError and TypeError are how the library says that an entry is missing.
        except (ConfigException, yaml.YAMLError, OSError, ValueError, AssertionError, LookupError, TypeError) as exc:
            raise ConfigError(self._advice(exc)) from exc
        self.token = str(configuration.api_key.get("BearerToken", "")).strip()
        self.configuration, self.tls = configuration, tls

    def _kubeconfig_loader(self) -> KubeConfigLoader:
        """The files' loader; the same one while they do not change, for it knows when a plug-in is due."""
        # Of several, those that are not there are passed over, as kubectl does it.
        files = [path for path in self._files if path.exists()] or [self._files[0]]
        content = b"\0".join(path.read_bytes() for path in files)
        if self._loader is None or content != self._loaded:
            merged = KubeConfigMerger(":".join(map(str, files))).config
            self._loader = KubeConfigLoader(config_dict=merged, config_base_path=None, active_context=self._context or None)
            self._loaded = content
        return self._loader

    def _advice(self, exc: Exception) -> str:
        reason = (exc.strerror if isinstance(exc, OSError) else str(exc)) or type(exc).__name__
        if self._files:
            name = ":".join(map(str, self._files))
            context = f" (context {self._context})" if self._context else ""
            return f"kubeconfig {name}{context} can't be used: {reason}; try it with `kubectl --kubeconfig … get nodes`"
        return (
            f"no Kubernetes API server is known: {reason}; outside of a pod give --kubeconfig FILE, inside of one let it have a "
            f"service account's token (automountServiceAccountToken)"
        )


def _fingerprint(configuration: Any) -> bytes:
    """Of all that a TLS connection is made with, by content and not by file name."""
    digest = hashlib.sha256(
        repr((configuration.host, configuration.verify_ssl, configuration.tls_server_name, configuration.proxy)).encode()
    )
    for name in (configuration.ssl_ca_cert, configuration.cert_file, configuration.key_file):
        digest.update(b"\0" if name is None else hashlib.sha256(Path(name).read_bytes()).digest())
    return digest.digest()
