"""File helpers: files written whole or not at all, and small JSON files with checked content."""
