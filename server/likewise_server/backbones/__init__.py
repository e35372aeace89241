"""Frozen pretrained networks: found by name, loaded, and run on one device."""
