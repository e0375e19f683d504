"""Text generation: cache, sampling, tokens, texts."""
