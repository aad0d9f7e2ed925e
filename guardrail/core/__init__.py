"""What every room needs and no paper is about: errors, files, command lines, progress, provenance, ranks, launching."""
