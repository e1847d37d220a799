#!/usr/bin/env bash
# Makes this machine one of the lab's two: lab/provision.sh kernel|packages|node NUMBER.  `vagrant up` runs it in each machine, and
# `./dev test --lab` in two roots of debootstrap's, which have no systemd.  Again is safe: what is there is kept, what has changed is
# written anew.
#
#   kernel      installs the kernel that NODEPROXY_KERNEL names; nothing if it names none.  Needs a reboot, which is Vagrant's.
#   packages    what ./dev needs, and the programs that the demo's pods run
#   node N      N is 0 or 1: CA, mesh file, two pods, units; then starts them if systemd is there
set -euo pipefail
tree=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
part=${1:?lab/provision.sh kernel|packages|node NUMBER}
step() { printf '\033[1m[lab]\033[0m %s\n' "$*" >&2; }
install_packages() { DEBIAN_FRONTEND=noninteractive apt-get -yq --no-install-recommends install "$@" >/dev/null; }

kernel() {
    local name=${NODEPROXY_KERNEL-} codename
    [[ -n $name ]] || return 0
    step "kernel: $name"
    if [[ -f $name ]]; then
        install_packages "$(realpath "$name")"
        return
    fi
    # Newer kernels stand in the release's backports.
    codename=$(. /etc/os-release && echo "$ID $VERSION_CODENAME")
    [[ $codename != debian\ * ]] ||
        echo "deb http://deb.debian.org/debian ${codename#debian }-backports main" >/etc/apt/sources.list.d/lab-backports.list
    apt-get -q update >/dev/null
    install_packages "$name"
}

packages() {
    # The lists may be older than the archive; and ./dev would look at them only when a package is missing in them.
    step "packages"
    apt-get -q update >/dev/null
    # ./dev installs these itself on Debian, and on others wants to find them.  Debian's headers serve any kernel, Ubuntu's their own.
    local headers
    headers=linux-headers-$(. /etc/os-release && [[ $ID == ubuntu ]] && uname -r || dpkg --print-architecture)
    install_packages python3-venv ca-certificates python3-bpfcc "$headers" iproute2 iputils-ping curl procps tcpdump
    "$tree/dev" run version
    printf '#!/bin/sh\nexec %q -P -m nodeproxy "$@"\n' "$tree/.venv/bin/python" >/usr/local/bin/nodeproxy
    chmod 755 /usr/local/bin/nodeproxy
}

node() {
    local number=${1:?node 0 or 1} unit units
    step "node-$number: CA, mesh file, units"
    install -d -m 700 /etc/nodeproxy
    # Both machines must have the same CA: Vagrant uploads the one that it made.
    if [[ -d /tmp/nodeproxy-ca ]]; then
        rm -rf /etc/nodeproxy/ca && mv /tmp/nodeproxy-ca /etc/nodeproxy/ca
        chown -R root: /etc/nodeproxy/ca && chmod 700 /etc/nodeproxy/ca && chmod 600 /etc/nodeproxy/ca/*
    elif [[ ! -d /etc/nodeproxy/ca ]]; then
        nodeproxy ca init /etc/nodeproxy/ca
    fi
    { cat "$tree/lab/mesh.yaml"; "$tree/lab/pods.sh" "$number" print; } >/etc/nodeproxy/mesh.yaml.new
    mv /etc/nodeproxy/mesh.yaml.new /etc/nodeproxy/mesh.yaml
    mkdir -p /etc/systemd/system
    for unit in "$tree"/lab/*.service; do
        sed -e "s|@TREE@|$tree|g" -e "s|@NUMBER@|$number|g" "$unit" >/etc/systemd/system/"${unit##*/}"
    done
    ln -sf "$tree/lab/demo.sh" /usr/local/bin/nodeproxy-lab
    if [[ -d /run/systemd/system ]]; then
        systemctl daemon-reload
        mapfile -t units < <(printf '%s\n' nodeproxy-pods nodeproxy; "$tree/lab/pods.sh" "$number" names | sed 's/.*/nodeproxy-web@&/')
        systemctl enable --quiet "${units[@]}"
        systemctl restart "${units[@]}"
        step "node-$number runs.  When both do: vagrant ssh node-0 -c 'sudo nodeproxy-lab'"
    else
        step "no systemd here: nothing is started"
    fi
}

((EUID == 0)) || { echo "lab/provision.sh needs root" >&2; exit 2; }
"$part" "${@:2}"
