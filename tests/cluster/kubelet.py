"""A kubelet that is simulated: it has the pods run that the API server binds to its node, and says there what becomes of them.

As the real one: the pod's network first, init containers one after the other, containers again when they have ended, the pod's
addresses in its status once it runs, probes from the node's network, a pod's end in the order containers, network, API object.
What runs is `runtime`'s and goes on while a kubelet is away: a restart is another kubelet on the same runtime.
"""

from __future__ import annotations

import contextlib
import heapq
import http.client
import json
import queue
import subprocess
import threading
import time
from dataclasses import dataclass, field
from typing import Any

from tests.cluster.apiserver import ApiError, ApiServer
from tests.cluster.cni_chain import CniError
from tests.cluster.kinds import Object
from tests.cluster.pod_program import pod_program
from tests.cluster.runtime import Container, Runtime, Sandbox

_WORKERS = 8
# The real one's is a second and more; here it is what a test waits for.
RETRY_S = 0.25
_PROBE_TIMEOUT_S = 6.0
_HASH = "kubernetes.io/config.hash"


@dataclass
class _Pod:
    """A pod as this kubelet knows it; only one worker at a time has it."""

    object: Object
    gone: bool = False  # its object has left the API
    busy: bool = False
    again: bool = False
    told: Object | None = None  # the last status that was written
    ready: dict[str, bool] = field(default_factory=dict)  # container with a readiness probe → its last outcome
    ended: bool = False

    @property
    def uid(self) -> str:
        return pod_uid(self.object)

    @property
    def containers(self) -> list[Object]:
        return list(self.object["spec"]["containers"])


def pod_uid(item: Object) -> str:
    """As cgroups and CNI_ARGS name a pod."""
    metadata = item["metadata"]
    return str(metadata.get("annotations", {}).get(_HASH) or metadata["uid"])


def command_of(container: Object) -> list[str]:
    """`command` and `args` as they are; without either a pause.  "pod" is pod_program.c."""
    return [*container.get("command", []), *container.get("args", [])] or ["pod", "pause"]


class Kubelet:
    """Of the node `name`.  failures: (pod, what its CNI said) of each sandbox that was not made; probes: outcomes by pod."""

    def __init__(self, api: ApiServer, name: str, runtime: Runtime) -> None:
        self.api, self.name, self.runtime = api, name, runtime
        self.failures: list[tuple[str, CniError]] = []
        self.probes: dict[str, list[bool]] = {}
        self._pods: dict[str, _Pod] = {}
        self._lock = threading.Lock()
        self._queue: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._stopping = threading.Event()
        self._watch: http.client.HTTPConnection | None = None
        self._due: list[tuple[float, str, str, str]] = []  # (when, pod's uid, container, probe; "" is the pod itself)
        self._due_changed = threading.Condition()
        self._cgroup = runtime.kubelet_cgroup
        self._threads = [threading.Thread(target=self._work, name=f"kubelet {name}", daemon=True) for _ in range(_WORKERS)]
        self._threads += [threading.Thread(target=each, daemon=True) for each in (self._follow, self._keep_time)]

    def start(self) -> None:
        self.runtime.on_exit = self._wake
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """As a restart ends it: pods go on."""
        self._stopping.set()
        self.runtime.on_exit = None
        with self._due_changed:
            self._due_changed.notify()
        for _ in range(_WORKERS):
            self._queue.put(None)
        while any(thread.is_alive() for thread in self._threads):
            watch = self._watch
            if watch is not None and watch.sock is not None:
                with contextlib.suppress(OSError):
                    watch.sock.shutdown(2)  # SHUT_RDWR: what waits in its read is let go
            for thread in self._threads:
                thread.join(0.02)

    def sandbox(self, namespace: str, name: str) -> Sandbox | None:
        """The running pod of that name."""
        for each in list(self.runtime.sandboxes.values()):
            if (each.attachment.namespace, each.attachment.name) == (namespace, name):
                return each
        return None

    # ── what the API server says ──

    def _follow(self) -> None:
        while not self._stopping.is_set():
            # An API server that is away, or has forgotten the version: listed anew.
            with contextlib.suppress(OSError, http.client.HTTPException, ApiError, ValueError):
                self._list_and_watch()
            self._stopping.wait(0.05)
        self.api.forget_connection()

    def _list_and_watch(self) -> None:
        query = f"/api/v1/pods?fieldSelector=spec.nodeName%3D{self.name}"
        listed = self.api.request("GET", query)
        known = {pod_uid(item) for item in listed["items"]}
        for item in listed["items"]:
            self._told(item, gone=False)
        for uid, pod in list(self._pods.items()):
            if uid not in known:
                self._told(pod.object, gone=True)
        for uid, sandbox in list(self.runtime.sandboxes.items()):
            if uid not in known and uid not in self._pods:  # gone while no kubelet was there
                at = sandbox.attachment
                self._told({"metadata": {"namespace": at.namespace, "name": at.name, "uid": uid}}, gone=True)
        self._watch, response = self.api.stream(f"{query}&watch=1&resourceVersion={listed['metadata']['resourceVersion']}")
        try:
            while line := response.readline():
                event = json.loads(line)
                if event["type"] == "ERROR":
                    return
                self._told(event["object"], gone=event["type"] == "DELETED")
        finally:
            response.close()
            self._watch.close()

    def _told(self, item: Object, *, gone: bool) -> None:
        uid = pod_uid(item)
        with self._lock:
            pod = self._pods.setdefault(uid, _Pod(item))
            pod.object, pod.gone = item, gone
        self._wake(uid)

    def _wake(self, uid: str) -> None:
        with self._lock:
            pod = self._pods.get(uid)
            if pod is None:
                return
            pod.again = True
            if pod.busy:
                return
            pod.busy = True
        self._queue.put(uid)

    # ── toward what is wanted ──

    def _work(self) -> None:
        while (uid := self._queue.get()) is not None:
            pod = self._pods[uid]
            while True:
                pod.again = False
                try:
                    self._sync(pod)
                except (ApiError, OSError, http.client.HTTPException):  # the API server is away, or another one wrote
                    self._later(RETRY_S, uid)
                with self._lock:
                    if not pod.again or self._stopping.is_set():
                        pod.busy = False
                        if pod.ended:
                            self._pods.pop(uid, None)
                        break
        self.api.forget_connection()

    def _sync(self, pod: _Pod) -> None:
        metadata = pod.object["metadata"]
        if pod.gone or "deletionTimestamp" in metadata:
            self._end(pod)
            return
        if pod.object.get("status", {}).get("phase") in ("Succeeded", "Failed"):
            self.runtime.stop_sandbox(pod.uid)
            return
        sandbox = self.runtime.sandboxes.get(pod.uid)
        if sandbox is None:
            try:
                sandbox = self._make_sandbox(pod)
            except CniError as error:
                self.failures.append((f"{metadata['namespace']}/{metadata['name']}", error))
                self._later(RETRY_S, pod.uid)
                return
        if self._run_containers(pod, sandbox):
            self._tell(pod, sandbox)

    def _make_sandbox(self, pod: _Pod) -> Sandbox:
        metadata, spec = pod.object["metadata"], pod.object["spec"]
        qos = pod.object.get("status", {}).get("qosClass", "Burstable")
        host_network = bool(spec.get("hostNetwork"))
        return self.runtime.run_sandbox(metadata["namespace"], metadata["name"], pod.uid, qos, host_network=host_network)

    def _run_containers(self, pod: _Pod, sandbox: Sandbox) -> bool:
        """Start what is to run now; whether there is something to tell of it."""
        spec = pod.object["spec"]
        policy = spec.get("restartPolicy", "Always")
        for each in spec.get("initContainers", []):
            made = sandbox.containers.get(each["name"])
            if made is None or (made.exit_status not in (None, 0) and policy != "Never"):
                self.runtime.start_container(sandbox, each["name"], command_of(each))
                return True
            if made.exit_status is None:
                return False
            if made.exit_status != 0:
                return True
        for each in pod.containers:
            made = sandbox.containers.get(each["name"])
            ended = made is not None and made.exit_status is not None
            if made is None or (ended and (policy == "Always" or (policy == "OnFailure" and made.exit_status != 0))):
                self.runtime.start_container(sandbox, each["name"], command_of(each))
                self._begin_probes(pod, each)
        return True

    def _end(self, pod: _Pod) -> None:
        metadata = pod.object["metadata"]
        if pod.uid in self.runtime.sandboxes and metadata.get("deletionGracePeriodSeconds", 0):
            hooks = [each.get("lifecycle", {}).get("preStop", {}) for each in pod.containers]
            self._stopping.wait(max(each.get("sleep", {}).get("seconds", 0) for each in hooks))
        self.runtime.stop_sandbox(pod.uid, float(metadata.get("deletionGracePeriodSeconds", 30)))
        if not pod.gone:
            with contextlib.suppress(ApiError):  # somebody has done it, or it is another pod by now
                self.api.end_pod(metadata["name"], metadata["namespace"], uid=metadata["uid"], grace_s=0)
            return  # the watch says that it is gone
        pod.ended = True

    # ── what the API server is told ──

    def _tell(self, pod: _Pod, sandbox: Sandbox) -> None:
        status = self._status(pod, sandbox)
        if status == pod.told:
            return
        metadata = pod.object["metadata"]
        with contextlib.suppress(ApiError):  # it is gone
            self.api.patch("Pod", metadata["name"], metadata["namespace"], "status", status=status)
            pod.told = status
        if status["phase"] in ("Succeeded", "Failed"):
            self.runtime.stop_sandbox(pod.uid)

    def _status(self, pod: _Pod, sandbox: Sandbox) -> Object:
        spec = pod.object["spec"]
        statuses = [self._container_status(pod, sandbox, each["name"]) for each in pod.containers]
        inits = [self._container_status(pod, sandbox, each["name"]) for each in spec.get("initContainers", [])]
        phase = _phase(spec, sandbox)
        ready = phase == "Running" and all(each["ready"] for each in statuses)
        addresses = sandbox.addresses or [self.runtime.node.address4]
        conditions = [{"type": "Initialized", "status": str(phase != "Pending")}]
        conditions += [{"type": kind, "status": str(ready)} for kind in ("Ready", "ContainersReady")]
        status: Object = {"phase": phase, "conditions": conditions, "containerStatuses": statuses}
        status |= {"hostIP": self.runtime.node.address4, "podIP": addresses[0], "podIPs": [{"ip": each} for each in addresses]}
        return status | ({"initContainerStatuses": inits} if inits else {})

    def _container_status(self, pod: _Pod, sandbox: Sandbox, name: str) -> Object:
        made = sandbox.containers.get(name)
        state: Object = {"waiting": {"reason": "PodInitializing"}}
        if made is not None:
            running = {"running": {}}
            state = running if made.exit_status is None else {"terminated": {"exitCode": made.exit_status}}
        ready = made is not None and made.exit_status is None and pod.ready.get(name, True)
        common = {"name": name, "image": "app", "imageID": "app", "restartCount": sandbox.restarts.get(name, 0)}
        return {**common, "ready": ready, "state": state, **({"containerID": f"containerd://{made.id}"} if made else {})}

    # ── probes and retries ──

    def _later(self, delay_s: float, uid: str, container: str = "", kind: str = "") -> None:
        with self._due_changed:
            heapq.heappush(self._due, (time.monotonic() + delay_s, uid, container, kind))
            self._due_changed.notify()

    def _keep_time(self) -> None:
        while not self._stopping.is_set():
            with self._due_changed:
                left = self._due[0][0] - time.monotonic() if self._due else 1.0
                if left > 0:
                    self._due_changed.wait(left)
                    continue
                _, uid, container, kind = heapq.heappop(self._due)
            if kind:
                self._probe(uid, container, kind)
            else:
                self._wake(uid)

    def _begin_probes(self, pod: _Pod, container: Object) -> None:
        if "readinessProbe" in container:
            pod.ready[container["name"]] = False
        for kind in ("readinessProbe", "livenessProbe"):
            if kind in container:
                self._later(container[kind].get("initialDelaySeconds", 0), pod.uid, container["name"], kind)

    def _probe(self, uid: str, name: str, kind: str) -> None:
        pod, sandbox = self._pods.get(uid), self.runtime.sandboxes.get(uid)
        if pod is None or sandbox is None or pod.gone:
            return
        container = next(each for each in pod.containers if each["name"] == name)
        made = sandbox.containers.get(name)
        if made is None or made.exit_status is not None:
            return  # the next start begins anew
        well = self._ask(container[kind], (sandbox.addresses or [self.runtime.node.address4])[0])
        self.probes.setdefault(f"{sandbox.attachment.namespace}/{sandbox.attachment.name}", []).append(well)
        if kind == "readinessProbe" and pod.ready.get(name) is not well:
            pod.ready[name] = well
            self._wake(uid)
        elif kind == "livenessProbe" and not well:
            _kill(made)
        self._later(container[kind].get("periodSeconds", 1), uid, name, kind)

    def _ask(self, probe: Object, address: str) -> bool:
        """From the kubelet's own cgroup, in the node's network."""
        kind = "http" if "httpGet" in probe else "tcp"
        port = str(probe["httpGet" if kind == "http" else "tcpSocket"]["port"])
        argv = [str(pod_program()), "run", str(self._cgroup / "cgroup.procs"), self.runtime.node.netns_path]
        asked = subprocess.run([*argv, "pod", "probe", kind, address, port], timeout=_PROBE_TIMEOUT_S * 3, check=False)
        return asked.returncode == 0


def _kill(container: Container) -> None:
    with contextlib.suppress(ProcessLookupError):
        container.process.kill()


def _phase(spec: Object, sandbox: Sandbox) -> str:
    def statuses(key: str) -> list[Any]:
        made = [sandbox.containers.get(each["name"]) for each in spec.get(key, [])]
        return [None if each is None else each.exit_status for each in made]

    if any(each != 0 for each in statuses("initContainers")):
        failed = any(each not in (None, 0) for each in statuses("initContainers"))
        return "Failed" if failed and spec.get("restartPolicy") == "Never" else "Pending"
    ended = statuses("containers")
    if spec.get("restartPolicy", "Always") == "Always" or any(each is None for each in ended):
        return "Running"
    if all(each == 0 for each in ended):
        return "Succeeded"
    return "Failed" if spec["restartPolicy"] == "Never" else "Running"
