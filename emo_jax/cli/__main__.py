"""`python -m emo_jax.cli` is `emo`."""

from emo_jax.cli import main

main()
