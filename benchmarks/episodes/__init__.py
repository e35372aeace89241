"""The parts of benchmarks/fewshot.py."""
