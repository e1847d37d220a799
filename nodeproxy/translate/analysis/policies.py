"""Policies that nobody enforces, that ask for what is not there, or that can't match.

The specs are looked at as they were written, for what is told needs a place; what they mean is `authorization_policy`'s.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from nodeproxy.translate import objects
from nodeproxy.translate.analysis.scene import Level, Scene, Subject
from nodeproxy.translate.analysis.services import nothing
from nodeproxy.translate.analysis.waypoints import waypoint_of
from nodeproxy.translate.manifests import Manifest
from nodeproxy.translate.notes import quoted

_SCHEME = "spiffe://"
_MAX_DIGITS = 5  # of a port
_PAIRS = (("principals", "notPrincipals"), ("namespaces", "notNamespaces"), ("serviceAccounts", "notServiceAccounts"),
          ("ipBlocks", "notIpBlocks"), ("ports", "notPorts"))  # fmt: skip
Found = tuple[str, Any]


def check_policies(scene: Scene) -> None:
    """All of it."""
    for manifest, policy in scene.of(objects.AuthorizationPolicy):
        spec = _map(policy.spec)
        targets = list(_targets(spec))
        for field, target in targets:
            _target(scene, manifest, field, target)
        subjects = [] if targets else _subjects(scene, manifest, spec)
        if subjects:
            _enforced(scene, manifest, subjects, "nobody enforces it there")
        for index, rule in enumerate(_list(spec.get("rules"))):
            _rule(scene, manifest, f"spec.rules[{index}]", rule, subjects)
    for manifest, authentication in scene.of(objects.PeerAuthentication):
        spec = _map(authentication.spec)
        subjects = _subjects(scene, manifest, spec)
        if subjects and _is_strict(spec):
            _enforced(scene, manifest, subjects, "plain text is taken there all the same")
        ports = spec.get("portLevelMtls")
        if subjects and isinstance(ports, dict):
            for port in ports:
                text = _text(port)
                _port(scene, manifest, f"spec.portLevelMtls.{text}", text, subjects)
    _denied_anyway(scene)
    _overridden(scene)


# ── whom a policy is for ──────────────────────────────────────────────────────────────────────────


def _subjects(scene: Scene, manifest: Manifest, spec: dict[str, Any]) -> list[Subject]:
    namespace = manifest.key.partition("/")[0]
    selector = spec.get("selector")
    labels = selector.get("matchLabels") if isinstance(selector, dict) else None
    if isinstance(labels, dict) and labels:
        found = scene.selected(namespace, {_text(key): _text(value) for key, value in labels.items()})
        if not found:
            scene.tell(Level.WARNING, "selector-matches-nothing", manifest, "spec.selector", *nothing(scene, namespace))
        return found
    everywhere = namespace == scene.settings.root_namespace
    return [item for item in scene.subjects if everywhere or item.namespace == namespace]


def _enforced(scene: Scene, manifest: Manifest, subjects: list[Subject], then: str) -> None:
    outside = [item for item in subjects if item.in_mesh is False]
    if not outside:
        return
    where = f"is for {outside[0].called}" + (f" and {len(outside) - 1} more" if len(outside) > 1 else "")
    whole_namespaces = manifest.key.partition("/")[0] == scene.settings.root_namespace
    level = Level.WARNING if whole_namespaces or len(outside) < len(subjects) else Level.ERROR
    advice = "give the namespace or the pods the label istio.io/dataplane-mode=ambient"
    scene.tell(level, "outside-mesh", manifest, "spec", f"{where}, outside the mesh: {then}", advice)


def _targets(spec: dict[str, Any]) -> Iterator[Found]:
    if isinstance(spec.get("targetRef"), dict):
        yield "spec.targetRef", spec["targetRef"]
    for index, target in enumerate(_list(spec.get("targetRefs"))):
        if isinstance(target, dict):
            yield f"spec.targetRefs[{index}]", target


def _target(scene: Scene, manifest: Manifest, field: str, target: dict[str, Any]) -> None:
    kind, name = _text(target.get("kind")), _text(target.get("name"))
    namespace = _text(target.get("namespace") or manifest.key.partition("/")[0])
    key = f"{namespace}/{name}"
    if kind == "GatewayClass":
        found: objects.Resource | None = scene.find(objects.GatewayClass, name)
        key = name
    elif kind == "Gateway":
        found = scene.find(objects.Gateway, key)
    elif kind == "ServiceEntry":
        found = scene.find(objects.ServiceEntry, key)
    elif kind == "Service":
        found = scene.find(objects.Service, key)
    else:
        advice = "name a Gateway, GatewayClass, Service or ServiceEntry"
        scene.tell(Level.ERROR, "target-unknown", manifest, field, f"is a {kind}, which no waypoint is asked about", advice)
        return
    if found is None:
        message = f"names the {kind} {key}, which is not in these manifests"
        scene.tell(Level.WARNING, "target-missing", manifest, field, message, "add it, or mend the name")
    elif kind in ("Service", "ServiceEntry") and not waypoint_of(scene, namespace, found.metadata.labels):
        message = f"names the {kind} {key}, which has no waypoint: nobody enforces it"
        advice = "give it or its namespace the label istio.io/use-waypoint"
        scene.tell(Level.ERROR, "no-waypoint", manifest, field, message, advice)


# ── rules ─────────────────────────────────────────────────────────────────────────────────────────


def _rule(scene: Scene, manifest: Manifest, path: str, rule: Any, subjects: list[Subject]) -> None:
    if not isinstance(rule, dict):
        return
    for field, source in _parts(rule, path, "from", "source"):
        for name in ("principals", "notPrincipals"):
            for where, text in _texts(source, field, name):
                _principal(scene, manifest, where, text)
        for name in ("namespaces", "notNamespaces"):
            for where, text in _texts(source, field, name):
                _namespace(scene, manifest, where, text)
        for name in ("serviceAccounts", "notServiceAccounts"):
            for where, text in _texts(source, field, name):
                namespace, slash, account = text.rpartition("/")
                _account(scene, manifest, where, namespace if slash else manifest.key.partition("/")[0], account)
        _contradiction(scene, manifest, field, source)
    for field, operation in _parts(rule, path, "to", "operation"):
        for name in ("ports", "notPorts"):
            for where, text in _texts(operation, field, name):
                _port(scene, manifest, where, text, subjects)
        _contradiction(scene, manifest, field, operation)
    for index, condition in enumerate(_list(rule.get("when"))):
        if not isinstance(condition, dict):
            continue
        check = {"source.principal": _principal, "source.namespace": _namespace}.get(_text(condition.get("key")))
        for name in ("values", "notValues"):
            for where, text in _texts(condition, f"{path}.when[{index}]", name):
                if check is not None:
                    check(scene, manifest, where, text)
                elif condition.get("key") == "destination.port":
                    _port(scene, manifest, where, text, subjects)


def _principal(scene: Scene, manifest: Manifest, field: str, text: str) -> None:
    if text.startswith(_SCHEME):
        message = f"is {text!r}: principals are written without {_SCHEME}"
        scene.tell(Level.ERROR, "principal-never", manifest, field, message, f"write {text.removeprefix(_SCHEME)}")
        return
    if "*" in text:
        _star(scene, manifest, field, text, "cluster.local/ns/NAMESPACE/*")
        return
    parts = text.split("/")
    if len(parts) != 5 or (parts[1], parts[3]) != ("ns", "sa"):
        message = f"is {text!r}, which no identity of a mesh looks like"
        scene.tell(Level.ERROR, "principal-never", manifest, field, message, "write TRUST-DOMAIN/ns/NAMESPACE/sa/ACCOUNT")
        return
    domain, namespace, account = parts[0], parts[2], parts[4]
    if domain != scene.settings.trust_domain:
        message = f"is of the trust domain {domain}; this mesh's is {scene.settings.trust_domain}"
        advice = "a node takes no client of another trust domain; mend it, or give --trust-domain"
        scene.tell(Level.WARNING, "principal-foreign", manifest, field, message, advice)
        return
    _account(scene, manifest, field, namespace, account)


def _star(scene: Scene, manifest: Manifest, field: str, text: str, example: str) -> None:
    rest = text[1:] if text.startswith("*") else text.removesuffix("*")
    if "*" in rest:
        message = (
            f"is {text!r}, which matches nothing: one star, at the beginning or at the end, stands for anything, no other does"
        )
        scene.tell(Level.ERROR, "star-never", manifest, field, message, f"write one that has a single star, such as {example}")


def _account(scene: Scene, manifest: Manifest, field: str, namespace: str, account: str) -> None:
    if namespace not in scene.namespaces:
        _namespace(scene, manifest, field, namespace)
    elif account != "default" and (namespace, account) not in scene.accounts:
        message = f"names the service account {namespace}/{account}, which no manifest has or uses"
        scene.tell(Level.WARNING, "account-unknown", manifest, field, message, "mend the name, or add the ServiceAccount")


def _namespace(scene: Scene, manifest: Manifest, field: str, text: str) -> None:
    if "*" in text:
        _star(scene, manifest, field, text, "NAME*")
    elif text not in scene.namespaces:
        message = f"names the namespace {text}, of which nothing is in these manifests"
        scene.tell(Level.WARNING, "namespace-unknown", manifest, field, message, "mend the name, or add what is in it")


def _port(scene: Scene, manifest: Manifest, field: str, text: str, subjects: list[Subject]) -> None:
    """A policy is asked for the pod's own port, not for the service's."""
    if not text.isdecimal() or len(text) > _MAX_DIGITS or not subjects:
        return
    port = int(text)
    services = [(item, service) for item in subjects for service in scene.services_of(item)]
    targets = {_target_of(item, each) for item, service in services for each in service.spec.ports}
    known = {number for item in subjects for number in item.ports} | targets
    if port in known or not known:
        return
    for item, service in services:
        for each in service.spec.ports:
            target = _target_of(item, each)
            if each.port == port and target:
                message = f"is {port}, a port of Service {service.key}: {item.called} gets those connections on {target}"
                scene.tell(Level.ERROR, "service-port", manifest, field, message, f"write the pod's port, {target}")
                return
    listed = ", ".join(map(str, sorted(number for number in known if number)))
    message = f"is {port}, which no pod that it is for says it has"
    scene.tell(Level.WARNING, "port-unknown", manifest, field, message, f"they have {listed}; mend it, or list it in the pod")


def _target_of(subject: Subject, port: objects.ServicePort) -> int:
    if isinstance(port.target_port, str):
        return subject.named.get(port.target_port, 0)
    return port.target_port or port.port


def _contradiction(scene: Scene, manifest: Manifest, path: str, part: dict[str, Any]) -> None:
    """What is asked for and excluded in one breath matches nobody."""
    for name, negated in _PAIRS:
        wanted = {text for _, text in _texts(part, path, name)}
        if wanted and wanted <= {text for _, text in _texts(part, path, negated)}:
            message = f"has all of its {name} in {negated} too: it matches nothing"
            scene.tell(Level.ERROR, "never-matches", manifest, f"{path}.{negated}", message, "remove them from one of the two")
    namespaces = [text for _, text in _texts(part, path, "namespaces")]
    principals = [text for _, text in _texts(part, path, "principals")]
    if not namespaces or not principals or any("*" in text or text.count("/") != 4 for text in principals):
        return
    if any("*" in text for text in namespaces) or any(text.split("/")[2] in namespaces for text in principals):
        return
    message = "asks for principals and namespaces, and none of the principals is of any of the namespaces"
    advice = "put them into two entries of `from`, if either is meant"
    scene.tell(Level.ERROR, "never-matches", manifest, path, message, advice)


def _denied_anyway(scene: Scene) -> None:
    """An ALLOW policy under a DENY of everything allows nothing."""
    everything = [policy for _, policy in scene.of(objects.AuthorizationPolicy) if _denies_everything(_map(policy.spec))]
    for manifest, policy in scene.of(objects.AuthorizationPolicy):
        spec = _map(policy.spec)
        if spec.get("action", "ALLOW") != "ALLOW" or not _list(spec.get("rules")) or list(_targets(spec)):
            continue
        for deny in everything:
            home = deny.metadata.namespace
            if home in (policy.metadata.namespace, scene.settings.root_namespace):
                message = f"allows nothing: AuthorizationPolicy {deny.key} denies every connection"
                advice = "remove that; where there is an ALLOW policy, what none allows is denied"
                scene.tell(Level.ERROR, "denied-anyway", manifest, "spec.rules", message, advice)
                break


def _overridden(scene: Scene) -> None:
    """Of several PeerAuthentications that select a workload the oldest holds, and the others do not."""
    first: dict[Subject, Manifest] = {}
    told: set[Manifest] = set()
    selecting = [(manifest, item) for manifest, item in scene.of(objects.PeerAuthentication) if "selector" in _map(item.spec)]
    for manifest, item in sorted(selecting, key=lambda each: (each[1].metadata.creation_timestamp or "", each[0].key)):
        namespace = item.metadata.namespace
        labels = _map(_map(_map(item.spec).get("selector")).get("matchLabels"))
        for subject in scene.selected(namespace, {_text(key): _text(value) for key, value in labels.items()}):
            other = first.setdefault(subject, manifest)
            if other is not manifest and subject.namespace == namespace and manifest not in told:
                told.add(manifest)
                message = f"selects {subject.called}, as PeerAuthentication {other.key} does: the older one alone holds there"
                scene.tell(Level.ERROR, "overridden", manifest, "spec.selector", message, "make them one, or select others")


def _denies_everything(spec: dict[str, Any]) -> bool:
    if spec.get("action") != "DENY" or spec.get("selector") or list(_targets(spec)):
        return False
    return any(rule == {} or rule is None for rule in _list(spec.get("rules")))


# ── the form of a spec, whatever was written ──────────────────────────────────────────────────────


def _is_strict(spec: dict[str, Any]) -> bool:
    ports = spec.get("portLevelMtls")
    modes = [spec.get("mtls"), *(ports.values() if isinstance(ports, dict) else ())]
    return any(isinstance(mode, dict) and mode.get("mode") == "STRICT" for mode in modes)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else quoted(value)


def _map(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _parts(rule: dict[str, Any], path: str, name: str, part: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for index, entry in enumerate(_list(rule.get(name))):
        if isinstance(entry, dict) and isinstance(entry.get(part), dict):
            yield f"{path}.{name}[{index}].{part}", entry[part]


def _texts(part: dict[str, Any], path: str, name: str) -> Iterable[tuple[str, str]]:
    return [(f"{path}.{name}[{index}]", text) for index, text in enumerate(_list(part.get(name))) if isinstance(text, str)]
