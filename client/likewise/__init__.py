"""The likewise client."""
