"""Mesh, logical-axis rules, sharding."""
