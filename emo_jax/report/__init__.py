"""One-page report of a run: losses, domains, routing, speed, keep-k, config, environment."""
