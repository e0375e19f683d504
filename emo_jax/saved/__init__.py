"""Models on disk: loads them from workdirs and Hugging Face folders, and converts between both."""
