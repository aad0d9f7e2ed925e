"""Section 4.3 of the paper: harmfulness, utility, MT-Bench, and two results compared."""
