"""Section 3 of the paper: representations, clusters, high- and low-similarity subsets, and the audit built on them."""
