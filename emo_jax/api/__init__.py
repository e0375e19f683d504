"""What `import emo_jax` has for models in memory and for tasks."""
