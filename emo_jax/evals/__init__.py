"""Held-out losses by domain, and what they become when experts are left out."""
