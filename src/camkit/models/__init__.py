"""Models: sources, weights, bundles."""
