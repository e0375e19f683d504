"""Analysis of what a model's experts do: activations, clusters, coverage, texts."""
