"""Pools, routing, dispatch, experts and their losses. Pure functions of arrays."""
