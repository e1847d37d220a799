"""The protocols as bytes: HTTP/2 and HBONE, baggage, trace context, PROXY protocol.

No I/O, no clock, no log: bytes in, callbacks out.
"""
