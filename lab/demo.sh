#!/usr/bin/env bash
# The demo between two machines, on node-0: sudo nodeproxy-lab.  Exit status 1 if anything is not as it should be.
set -uo pipefail
orders=http://10.44.255.7/ # the service's virtual address; its pod is on node-1
failed=0

# step passes|fails WORDS COMMAND: shows the command and what it prints, and says so if it ends in the other way.
step() {
    local wanted=$1 words=$2 ended=passes
    shift 2
    printf '\n\033[1m%s\033[0m\n$ %s\n' "$words" "$*"
    "$@" || ended=fails
    [[ $ended == "$wanted" ]] || { echo "→ it $ended, and should not" >&2; failed=1; }
}

step passes "The pod frontend asks the service orders, whose pod is on the other machine:" ip netns exec frontend curl -sS -m 20 $orders
step fails "The pod stranger may not:" ip netns exec stranger curl -sS -m 20 $orders
step passes "Why may the one?" nodeproxy why shop/frontend orders.shop.svc.cluster.local:80
step fails "And why not the other?" nodeproxy why shop/stranger orders.shop.svc.cluster.local:80
step passes "Which pods are in:" nodeproxy status
exit $failed
