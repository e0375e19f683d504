"""Models on disk: out of a workdir or a Hugging Face folder, and from one to the other."""
