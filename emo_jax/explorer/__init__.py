"""A self-contained page that shows what each expert knows (docs/explorer.md)."""
