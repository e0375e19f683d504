"""The decoder: layers, attention, transformer."""
