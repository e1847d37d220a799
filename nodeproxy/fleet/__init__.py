"""All agents of a cluster, as a laptop sees them through the API server."""
