"""The value types that every part of nodeproxy speaks in: no I/O, no policy, no state of their own."""
