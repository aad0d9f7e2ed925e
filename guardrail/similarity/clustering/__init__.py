"""Groups of similar rows: clustering in cosine geometry, description of every cluster, choice of one, stability."""
