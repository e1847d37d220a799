"""The mesh as this node knows it: one LMDB environment, written by the agent, read in place by every worker."""
