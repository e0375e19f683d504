"""Held-out losses by domain, and how they change when experts are left out."""
