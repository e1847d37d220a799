"""The commands: their arguments and their output, one module for each group.

A module here imports click and the standard library only; what a command needs beyond that it imports when it runs, so that
`nodeproxy --help` and the clients of a running agent start at once.
"""
