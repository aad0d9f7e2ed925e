"""The study: a grid of alignment subsets x downstream tasks x seeds, from one YAML file to one `study.json`."""
