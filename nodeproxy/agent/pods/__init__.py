"""Which pods of this node belong in the mesh, by whom that is said, and where they are."""
