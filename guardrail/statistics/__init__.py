"""All inference of the project; nothing else computes an interval or a p-value."""
