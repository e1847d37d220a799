"""Which tests show which feature on a kernel, and what is left out because emulation is twenty times slower.

A test is named as pytest does, without its parameters; a file stands for all tests in it.  What stands under no feature is not
run.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

KERNEL, MESH = "tests/kernel", "tests/mesh"


class Feature(NamedTuple):
    """A row of the matrix.  tests: files, or file::test."""

    title: str
    tests: tuple[str, ...]


def _of(file: str, *names: str) -> tuple[str, ...]:
    return tuple(f"{file}::test_{name}" for name in names)


_OUTBOUND, _INBOUND = f"{KERNEL}/test_outbound.py", f"{KERNEL}/test_inbound.py"
_FLOWS, _LIFECYCLE, _LINUX = f"{KERNEL}/test_direct_flows.py", f"{KERNEL}/test_lifecycle.py", f"{KERNEL}/test_linux.py"

# In the order in which they are shown, and their files run: what the others stand on comes first, what compiles comes later.
FEATURES = (
    Feature("network namespaces, capture, listeners", (_LINUX,)),
    Feature("steering, IPv4", _of(_OUTBOUND, "ipv4", "a_pod_that_is_not_enrolled_is_untouched", "a_mark_exempts_nobody")),
    Feature("steering, IPv6", (
        *_of(_OUTBOUND, "ipv6", "a_family_that_the_pod_lacks_is_refused"), *_of(_INBOUND, "a_pod_without_ipv6"),
    )),
    Feature("steering, IPv4-mapped", _of(_OUTBOUND, "ipv4_mapped")),
    Feature("loopback, own addresses and UDP stay untouched", _of(
        _OUTBOUND, "loopback_is_untouched", "the_pods_own_addresses_are_untouched", "udp_is_untouched",
    )),
    Feature("hand-over of the original destination", _of(
        _OUTBOUND, "200_of_200_destinations_are_right", "nothing_stays_behind_of_connects_that_fail",
        "a_socket_that_connects_again_is_what_it_is_now", "workers_take_turns", "the_original_destination_of_what_is_no_socket",
    )),
    Feature("sockets bound to a device or an address", _of(
        _OUTBOUND, "a_socket_bound_to_a_source_address_is_steered", "a_socket_bound_to_another_device_gets_nowhere_or_is_steered",
        "a_socket_bound_to_the_pods_device_is_steered",
    )),
    Feature("TCP Fast Open", (*_of(_OUTBOUND, "fast_open"), *_of(_FLOWS, "fast_open"))),
    Feature("MPTCP", (
        *_of(_OUTBOUND, "mptcp_is_steered"), *_of(_INBOUND, "mptcp_arrives_as_tcp", "last_leg_to_an_mptcp_application"),
        *_of(_FLOWS, "mptcp"),
    )),
    Feature("arrivals are told apart (sk_lookup)", _of(
        _INBOUND, "plaintext_goes_to_the_plaintext_listener", "tunnels_go_to_the_hbone_listener_in_turn",
        "one_worker_of_two_takes_all", "closed_when_no_worker_listens", "the_pod_reaches_itself",
        "an_address_that_the_pod_was_not_enrolled_with_is_closed", "an_application_on_the_proxys_ports_gets_nothing",
        "what_arrives_at_15001_has_no_original_destination", "the_proxys_tunnel_is_an_arrival_like_any_other",
    )),
    Feature("last leg with the client's address (tcp_fwmark_accept)", _of(
        _INBOUND, "last_leg_shows_the_clients_address", "last_leg_with_an_address_that_exists",
        "last_leg_to_a_closed_port_is_refused",
        "last_leg_with_the_pods_own_address", "a_last_legs_address_is_no_way_in", "a_mark_brings_nobody_in",
        "300_last_legs_leave_nothing_behind",
    )),
    Feature("direct path within a node", (f"{KERNEL}/test_direct.py",)),
    Feature("what a direct connection carried, to the byte", (*_of(
        # In the file's order: the last one leaves programs of another version.
        _FLOWS, "bytes_are_exact_however_it_ends", "who_closes_without_reading", "a_live_one_is_listed",
        "refused_by_the_application", "storms_leave_nothing", "an_agent_that_comes_again_knows_the_flows",
        "a_later_version_knows_the_flows",
    ),)),
    Feature("the kubelet's probes pass policy, no others do", (f"{KERNEL}/test_kubelet.py", f"{KERNEL}/test_find_kubelet.py")),
    Feature("pods are found by their cgroup", (f"{KERNEL}/test_kubepods.py",)),
    Feature("SOCK_DESTROY", (f"{KERNEL}/test_sock_diag.py",)),
    Feature("programs load, pin and are replaced; down is closed", (_LIFECYCLE,)),
    Feature("nodes: HBONE between them, streams whole", _of(
        f"{MESH}/test_relay.py", "one_byte_ping_pong", "half_closed_each_way", "reset_each_way", "the_application_sees_its_peers",
        "a_mapped_address_is_the_address", "a_reader_that_stands_still_stops_only_its_own_writer",
    )),
    Feature("nodes: what is outside the mesh stays as it is", (f"{MESH}/test_untouched.py",)),
    Feature("nodes: services, and ports that are mapped", _of(
        f"{MESH}/test_services.py", "round_robin_over_both_nodes", "ports_are_mapped", "nothing_listens_on_loopback",
        "a_pod_that_calls_itself_through_its_service", "own_ports_are_refused",
    )),
    Feature("nodes: policy, for who connects and for who is connected", _of(
        f"{MESH}/test_policy.py", "without_policies_all_pass", "who_it_is", "where_it_goes", "a_push_ends_what_it_denies",
        "plaintext_has_an_address_and_no_identity",
    )),
    Feature("nodes: direct connections, judged again", _of(
        f"{MESH}/test_direct.py", "bytes_go_past_the_proxy_and_are_told_exactly", "live_ones_are_judged_again",
        "another_identity_is_judged_again", "ports_and_identities", "an_address_that_moves_to_another_pod",
    )),
    Feature("nodes: enrolment while they run", (
        *_of(f"{MESH}/test_enrolment.py", "by_edit_of_the_mesh_file", "leaving_leaves_nothing_in_the_namespace",
             "a_connection_outlives_its_pods_leaving", "a_pod_that_leaves_and_comes_back_at_once_is_whole"),
        *_of(f"{MESH}/test_commands.py", "enrol_and_leave_by_command"),
    )),
    Feature("nodes: pods with several addresses, and such that come, go and end", _of(
        f"{MESH}/test_odd_pods.py", "every_address_of_every_interface_is_judged", "addresses_that_come_and_go_after_enrolment",
        "an_interface_that_comes_after_enrolment_is_judged_as_well", "a_job_that_ends_leaves_nothing",
    )),
    Feature("nodes: killed, restarted, uninstalled", _of(
        f"{MESH}/test_life.py", "a_killed_agent_leaves_the_node_closed_and_the_next_one_opens_it", "a_killed_worker_is_replaced",
        "plain_traffic_from_outside_is_closed_too", "a_drain_lets_connections_end", "a_namespace_that_has_gone_is_forgotten",
        "uninstall_leaves_the_pods_plain_and_nothing_behind",
    )),
    Feature("nodes: enrolment by label, and by the CNI plug-in", (
        *_of(f"{MESH}/test_labels.py", "a_running_pod_gets_a_label_and_loses_it", "containers_restart_and_the_pod_stays",
             "connections_that_stood_before_are_told_until_they_end"),
        *_of(f"{MESH}/test_cni.py", "a_new_pods_first_connection_is_in_the_mesh"),
    )),
    Feature("nodes: probes under STRICT", _of(
        f"{MESH}/test_kubelet.py", "they_pass_as_long_as_the_kubelet_is_known_and_nothing_else_does",
    )),
    Feature("nodes: one agent takes over from another", _of(
        f"{MESH}/test_roll.py", "an_agent_that_waits_serves_again_when_nobody_does",
        "the_old_agent_is_bound_by_what_changes_meanwhile",
    )),
    Feature("nodes: beside istio-cni's rules", _of(
        f"{MESH}/test_istio_rules.py", "what_a_pod_sends_goes_through_the_mesh", "a_tunnel_reaches_the_pod",
        "a_pod_reaches_itself_and_its_loopback",
    )),
    Feature("nodes: enrolment by istio-cni (ZDS)", _of(f"{MESH}/test_zds.py", "who_is_added_is_in_and_who_is_deleted_drains")),
    Feature("nodes: with the capabilities of the DaemonSet alone", _of(
        f"{MESH}/test_capabilities.py", "pods_talk_between_nodes_with_their_own_addresses",
    )),
    Feature("nodes: hostile pods", _of(
        f"{MESH}/test_hostile_pod.py", "a_last_leg_cannot_be_forged", "binding_the_proxys_ports_takes_nothing",
        "its_own_proxy_ports_lead_nowhere", "another_pods_proxy_ports_are_no_way_in", "the_proxys_marks_exempt_nobody",
        "loopback_does_not_reach_the_workers_listeners",
    )),
)  # fmt: skip

# Files whose other tests are not run, and why; tests/unit/test_kernels.py holds that each file of both tiers is here or above.
LEFT_OUT = {
    f"{KERNEL}/test_direct_cost.py": "measures nanoseconds, which emulation does not have",
    f"{MESH}/test_demo.py": "the same nodes once more, with output for people; its own deadlines are a user's patience",
    f"{MESH}/test_drain.py": "nodes under hundreds of connections a second, which emulation cannot make",
    f"{MESH}/test_direct_life.py": "waits for the lease of 30 s; the kernel's part is in the kernel tier",
    f"{MESH}/test_direct_never_open.py": "races of thousands of connections, minutes without emulation's factor",
    f"{MESH}/test_hostile_peer.py": "HTTP/2 and TLS in user space, the same on each kernel",
    f"{MESH}/test_identity.py": "TLS in user space, the same on each kernel",
    f"{MESH}/test_labels_settings.py": "settings of what test_labels.py shows, user space alone",
    f"{MESH}/test_large_mesh_file.py": "100,000 workloads, user space alone",
    f"{MESH}/test_on_demand.py": "the control plane's protocol, user space alone",
    f"{MESH}/test_protocols.py": "databases and HTTP programs, minutes to start under emulation",
    f"{MESH}/test_roll_containers.py": "the handover of test_roll.py, under load",
    f"{MESH}/test_rotation.py": "certificates under load, user space alone",
    f"{MESH}/test_scale.py": "100,000 workloads, user space alone",
    f"{MESH}/test_telemetry.py": "metrics and logs, user space alone",
    f"{MESH}/test_uninstall.py": "files and processes, the same on each kernel",
    f"{MESH}/test_xds_source.py": "the control plane's protocol, user space alone",
}


def selection() -> list[str]:
    """What pytest is told to run: each once, and file by file, for what a file's tests share is made anew after another's."""
    tests = list(dict.fromkeys(test for feature in FEATURES for test in feature.tests))
    files = list(dict.fromkeys(test.split("::")[0] for test in tests))
    return [test for file in files for test in tests if test.split("::")[0] == file]


def features_of(node: str) -> Iterator[Feature]:
    """The features that a test shows."""
    name = node.split("[")[0]
    for feature in FEATURES:
        if name in feature.tests or name.split("::")[0] in feature.tests:
            yield feature
