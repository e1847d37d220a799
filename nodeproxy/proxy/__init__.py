"""What a worker process does: accept, TLS, HBONE, relay, and policy on arrival.

Its memory is paid once for each worker and its CPU for each byte: nothing here may import asyncio, cryptography or a client
library.
"""
