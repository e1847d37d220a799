"""Sources of state: each produces what `nodeproxy.model.delta` describes, and nothing else."""
