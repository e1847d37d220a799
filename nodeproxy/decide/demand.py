"""Deciding with a state that holds only what was asked for: what must be asked before a decision can be made.

Invariant: a name of which nothing is known is neither somebody nor nobody.  A decision that hangs on it is `Unanswered`, which is
a refusal: whoever does not know how to ask refuses.  It must not know how names are asked for, nor how long one waits.

A *name* is "network/ip", a workload's uid or a service key, as a control plane takes them.
"""

from __future__ import annotations

from collections.abc import Iterable

from nodeproxy.decide.waypoint import gateway_service, gateway_workload
from nodeproxy.model.reason import Reason, Refusal
from nodeproxy.model.workload import Gateway
from nodeproxy.state.view import View

# The names, of those that are answered, that decisions have hung on since somebody last looked; None where the state holds all
# there is, and nothing is asked for.
Names = set[str] | None
_DEFAULT = ("",)


class Unanswered(Refusal, frozen=True):
    """A refusal that an answer may lift.  names: those that must be asked for, all of them."""

    names: tuple[str, ...] = ()


def unanswered(names: tuple[str, ...]) -> Unanswered:
    """For names that nothing is known of."""
    what = ", ".join(names)
    return Unanswered(Reason.STATE_UNAVAILABLE, f"the source of state has not said yet who has {what}", names=names)


def missing_at(view: View, network: str, ip: str, names: set[str]) -> tuple[str, ...]:
    """What must be asked to know who has an address for a source in `network`, in the order of `outbound.who_is`."""
    missing = []
    for each in (network, "") if network else _DEFAULT:
        name = f"{each}/{ip}"
        if view.service_at(each, ip) is not None or view.workload_at(each, ip) is not None:
            names.add(name)
            break
        if view.is_absent(name):
            names.add(name)
        else:
            missing.append(name)
    return tuple(missing)


def missing_gateway(view: View, gateway: Gateway, names: set[str]) -> tuple[str, ...]:
    """What must be asked to know where a gateway is."""
    found = gateway_service(view, gateway) or gateway_workload(view, gateway)
    if found is None and not view.is_absent(gateway.destination):
        return (gateway.destination,)
    names.add(gateway.destination)
    return ()


def missing_services(view: View, keys: Iterable[str], names: set[str]) -> tuple[str, ...]:
    """Those of these service keys of which nothing is known."""
    missing = []
    for key in dict.fromkeys(keys):
        if view.service(key) is not None or view.is_absent(key):
            names.add(key)
        else:
            missing.append(key)
    return tuple(missing)
