"""Models on disk: loading them from workdirs and Hugging Face folders, and converting them."""
