"""Who a pod is and how it proves it: SPIFFE names, certificates, the local CA and the TLS contexts.

Workers import `spiffe`, `certificate` and `tls` only; whatever needs `cryptography` or asyncio is the agent's.
"""
