"""All inference of the project: rates and agreement, crossed seeds and prompts, regression."""
