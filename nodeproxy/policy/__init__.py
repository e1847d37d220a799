"""Authorization: what the policies that hold for a destination say about a connection.  Pure: no I/O, no look-ups, no clock."""
