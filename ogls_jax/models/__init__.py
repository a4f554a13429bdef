"""One decoder for all model families, its adapters and its weights."""
