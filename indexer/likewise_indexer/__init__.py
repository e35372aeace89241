"""Index whole image collections."""
