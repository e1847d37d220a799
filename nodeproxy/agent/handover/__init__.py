"""One agent taking over from another of the same instance that runs: who comes asks (`taking`), who is there gives (`giving`)."""
