"""What the experts of a model do: activations, clusters, coverage, texts."""
