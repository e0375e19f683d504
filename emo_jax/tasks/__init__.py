"""Tasks of the field's harness: requests, splits, the suite of the paper, tables."""
