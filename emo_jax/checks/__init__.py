"""`emo verify`: checks numerics against golden values, and a folder against its run."""
