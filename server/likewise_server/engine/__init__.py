"""The wire-free core: embed, add, search, train, classify."""
