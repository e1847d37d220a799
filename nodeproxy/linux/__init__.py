"""The kernel's interfaces that are not eBPF: namespaces, routes, sockets, cgroups."""
