"""Pools, routing, dispatch, experts and their losses, as pure functions of arrays."""
