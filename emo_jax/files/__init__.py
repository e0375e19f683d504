"""Files as such: written whole or not at all, and small JSON files whose content is checked."""
