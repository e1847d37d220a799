#!/usr/bin/env bash
# This machine's two pods: network namespaces on a bridge, routed to the other machine's.  lab/pods.sh NUMBER up|down|print|names
# print: the mesh file's `pods`.  up and down may be repeated.
set -euo pipefail
number=$1
peer=$((1 - number))
peer_address=${NODEPROXY_LAB_NET:-192.168.56}.$((11 + peer))
pods=("frontend stranger" "orders stock")

print() {
    echo "pods:"
    for pod in ${pods[number]}; do echo "  - {uid: shop/$pod, netns: /run/netns/$pod}"; done
}

names() { printf '%s\n' ${pods[number]}; }

down() {
    for pod in ${pods[number]}; do ip netns delete "$pod" 2>/dev/null || true; done
    # A program that is still in a pod keeps its namespace, and its end of the wire.
    for link in pods pod2 pod3; do ip link delete "$link" 2>/dev/null || true; done
}

up() {
    local place=2 device
    down
    sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
    ip link add pods type bridge
    ip address add "10.44.$number.1/24" dev pods
    ip address add "fd44:$number::1/64" dev pods nodad
    ip link set pods up
    for pod in ${pods[number]}; do
        ip netns add "$pod"
        ip link add "pod$place" type veth peer name eth0 netns "$pod"
        ip link set "pod$place" master pods up
        ip -n "$pod" link set lo up
        ip -n "$pod" link set eth0 up
        ip -n "$pod" address add "10.44.$number.$place/24" dev eth0
        ip -n "$pod" address add "fd44:$number::$place/64" dev eth0 nodad
        ip -n "$pod" route add default via "10.44.$number.1"
        ip -n "$pod" route add default via "fd44:$number::1"
        place=$((place + 1))
    done
    # Pods of the other machine: what a cluster's network would do.  Vagrant's private network has no IPv6 of its own.
    ip route replace "10.44.$peer.0/24" via "$peer_address"
    device=$(ip -o route get "$peer_address" | grep -o 'dev [^ ]*')
    # shellcheck disable=SC2086 # two words
    ip address replace "fd44:ff::$((11 + number))/64" $device nodad
    ip route replace "fd44:$peer::/64" via "fd44:ff::$((11 + peer))"
}

"$2"
