"""Benchmarks: what the parts cost on this machine. They print tables and judge nothing."""
