"""The parts of benchmarks/embed.py and benchmarks/soak.py."""
