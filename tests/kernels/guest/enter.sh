#!/bin/sh
# Run by virtme-ng inside the emulated machine: enter.sh FOLDER.  Makes a root of the host's (over 9p, read only) with a layer in memory
# on top, and runs FOLDER/run.sh in it; FOLDER is the one place that the host sees.
#
# virtme-ng's own view of the host's root is not cached: every open() and stat() is a message to the host, and Python's imports are
# thousands of them.  The same root is mounted once more with a cache, which takes the time of an import from 7.4 s to 1.7 s.
set -e
folder=$1
modprobe -q overlay || true
mkdir -p /run/np/lower /run/np/layer /run/np/root
mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,cache=loose,ro,access=any nodeproxy-root /run/np/lower
mount -t tmpfs none /run/np/layer
mkdir /run/np/layer/upper /run/np/layer/work
mount -t overlay -o lowerdir=/run/np/lower,upperdir=/run/np/layer/upper,workdir=/run/np/layer/work none /run/np/root
cd /run/np/root
for directory in proc sys dev; do mount --rbind /$directory $directory; done
mount -t tmpfs none run
# Modules: virtme-ng links them where the kernel looks; the link's target is the same in the cached view.
modules=$(readlink -f "/lib/modules/$(uname -r)")
mount -t tmpfs none usr/lib/modules
mkdir "usr/lib/modules/$(uname -r)"
mount --bind "/run/np/lower$modules" "usr/lib/modules/$(uname -r)"
mkdir -p ".$folder"
mount --bind "$folder" ".$folder"
ip link set lo up
ulimit -n 65536
exec chroot . /bin/bash "$folder/run.sh"
