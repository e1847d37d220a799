"""What becomes of a connection: pure functions of the state, used by workers for the connection and by `why` for the
explanation.
"""
