"""The direct path put together from its parts, with the reason for which there is none."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable

from nodeproxy.agent.direct import DirectPath
from nodeproxy.agent.direct_flows import DirectFlows
from nodeproxy.agent.direct_judge import Judge
from nodeproxy.agent.direct_pods import DirectPods
from nodeproxy.kernel.direct import DirectTable
from nodeproxy.linux.sock_diag import can_destroy
from nodeproxy.model.messages import WorkerSettings
from nodeproxy.observe.counters import Totals
from nodeproxy.state.view import View

# Why there is none with istio-cni: what a pod sends, but for what the proxy sends for it, its rules lead back to it.
_REDIRECTED = "istio-cni redirects what pods send"

log = logging.getLogger(__name__)


def direct_path(
    table: DirectTable, view: Callable[[], View], totals: Totals, settings: WorkerSettings, *, is_redirected: bool
) -> DirectPath:
    """settings: as the workers have them.  is_redirected: what pods send is, by istio-cni's rules."""
    hbone = settings.same_node_hbone
    pods = DirectPods()
    flows = DirectFlows(pods, view, totals, log_json=settings.log_json, log_fd=sys.stdout.fileno())
    judge = Judge(pods, flows, view, hbone=hbone)
    off = "same_node is hbone" if hbone else _REDIRECTED if is_redirected else can_destroy()
    if off and not hbone and not is_redirected:
        log.warning("pods of this node talk through the proxy, as direct connections could not be ended: %s", off)
    return DirectPath(table, pods, flows, judge, view, off=off, on_demand=settings.on_demand)
