"""GGUF files: read as models with their tokenizers, and written."""
