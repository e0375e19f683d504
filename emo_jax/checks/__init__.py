"""`emo verify`: numerics against golden numbers, a folder against the run it came from."""
