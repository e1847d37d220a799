"""What a person calls pods and services, as kubectl does: `frontend`, `shop/frontend`, `pod/frontend`, `svc/orders:80`.

Invariant: a name that means several things is an error that lists them, except the pods of one workload, which are alike: then
one is taken and it is said.  Pure: pods come as values, and nothing is asked.
"""

from __future__ import annotations

import difflib
import ipaddress
import re
from collections.abc import Iterable

import msgspec

from nodeproxy.errors import ConfigError
from nodeproxy.fleet.pods import FoundPod

_MAX_PORT = 65535
_MAX_EXAMPLES = 5
# What the API server allows as a name of a pod, service or namespace (DNS-1123); it also goes into a path.
_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
_POD, _SERVICE = "pod", "service"
# kubectl's names of kinds → the kind of a workload as `translate.pods` calls it.
_KINDS = {
    **dict.fromkeys(("pod", "pods", "po"), _POD),
    **dict.fromkeys(("service", "services", "svc"), _SERVICE),
    **dict.fromkeys(("deployment", "deployments", "deploy"), "deployment"),
    **dict.fromkeys(("cronjob", "cronjobs", "cj"), "cronjob"),
    **dict.fromkeys(("job", "jobs"), "job"),
    # Others have no type of their own in the mesh.
    **dict.fromkeys(("statefulset", "statefulsets", "sts", "daemonset", "daemonsets", "ds", "replicaset", "rs"), "other"),
}


class Named(msgspec.Struct, frozen=True, kw_only=True):
    """A name in its parts.  kind: "pod", "service", a workload's kind, or "".  verbatim: an address, uid or host: no name.

    namespace: "" if it names none.  port: 0 if it names none.
    """

    text: str
    kind: str = ""
    namespace: str = ""
    name: str = ""
    port: int = 0
    verbatim: bool = False

    @property
    def tail(self) -> str:
        """ ":port", or ""."""
        return f":{self.port}" if self.port else ""


def parse(text: str) -> Named:
    """The parts of a name.  Raises ConfigError."""
    if "//" in text:
        return _parse_uid(text)
    if _is_address(text) or text.startswith("["):
        return Named(text=text, verbatim=True)
    rest, port = _split_port(text)
    if _is_address(rest) or (rest.count(".") > 1 and "/" not in rest):
        return Named(text=text, port=port, verbatim=True)
    first, slash, name = rest.partition("/")
    if not slash:
        name, _, namespace = rest.partition(".")
        return Named(text=text, namespace=checked(namespace) if namespace else "", name=checked(name), port=port)
    if (kind := _KINDS.get(first.lower())) is not None:
        return Named(text=text, kind=kind, name=checked(name), port=port)
    return Named(text=text, namespace=checked(first), name=checked(name), port=port)


def checked(name: str) -> str:
    """A name that the API server could have.  Raises ConfigError for others."""
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{name!r} is no name of a pod, service or namespace: lower-case letters, digits, '-' and '.'")
    return name


def _parse_uid(text: str) -> Named:
    """Kubernetes//Pod/NAMESPACE/NAME[:PORT], as the mesh calls a pod."""
    rest, port = _split_port(text)
    parts = rest.split("/")
    if len(parts) != 5 or parts[2] != "Pod":
        return Named(text=text, port=port, verbatim=True)
    return Named(text=text, kind=_POD, namespace=checked(parts[3]), name=checked(parts[4]), port=port)


def _split_port(text: str) -> tuple[str, int]:
    rest, colon, tail = text.rpartition(":")
    if not colon:
        return text, 0
    if not (tail.isascii() and tail.isdigit() and 0 < int(tail) <= _MAX_PORT):
        raise ConfigError(f"{text!r}: {tail!r} is no port; ports go from 1 to {_MAX_PORT}")
    return rest, int(tail)


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def choose_pod(pods: Iterable[FoundPod], named: Named, namespace: str) -> tuple[FoundPod, str]:
    """The pod of `namespace` that is meant, and what is to be said of the choice ("" if there was none).

    pods: of that namespace.  Raises ConfigError if there is none, or names of different workloads fit.
    """
    living = [pod for pod in pods if not pod.ended]
    exact = [pod for pod in living if pod.name == named.name and named.kind in ("", _POD)]
    if exact:
        return exact[0], ""
    made = [pod for pod in living if pod.workload.partition("/")[2] == named.name and _fits(pod, named.kind)]
    workloads = sorted({pod.workload for pod in made})
    if len(workloads) > 1:
        raise ConfigError(f"{named.text!r} may be {' or '.join(workloads)} of namespace {namespace}: say which")
    if not made:
        raise ConfigError(_nobody(living, named, namespace))
    best = min(made, key=lambda pod: (not pod.ready, not pod.node, pod.leaving, pod.name))
    others = f"one of {len(made)} pods of {workloads[0]}" if len(made) > 1 else f"the pod of {workloads[0]}"
    return best, f"{best.key} is taken, {others}"


def _fits(pod: FoundPod, kind: str) -> bool:
    made_by = pod.workload.partition("/")[0]
    return kind == "" or kind == made_by or (kind == "other" and made_by == "workload")


def _nobody(pods: list[FoundPod], named: Named, namespace: str) -> str:
    said = f"namespace {namespace} has no pod {named.name!r}, and no workload of that name has one"
    known = sorted({pod.name for pod in pods} | {pod.workload.partition("/")[2] for pod in pods if pod.workload})
    close = [name for name in known if name.startswith(named.name)] or difflib.get_close_matches(named.name, known)
    if close:
        return f"{said}; did you mean {', '.join(close[:_MAX_EXAMPLES])}?"
    return f"{said}; `kubectl get pods -n {namespace}` lists them; another namespace is named by -n"
