"""What several benchmarks share: images, figures, other runtimes."""
