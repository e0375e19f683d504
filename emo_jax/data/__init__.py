"""From documents to batches: read, tokenise, store, cut into windows, load.

`documents` -> `tokenizers` -> `prepare` -> `store` (or `raw` files) -> `windows` -> `loader`.
"""
