"""Benchmarks: every figure is a ratio of one run, or says that it is an absolute time of this machine."""
