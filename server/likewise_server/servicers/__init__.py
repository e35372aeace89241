"""The wire: messages in, engine calls, messages out. Thin on purpose."""
