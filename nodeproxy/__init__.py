"""nodeproxy: an eBPF-accelerated, node-level ambient proxy."""

__version__ = "0.1.0"
