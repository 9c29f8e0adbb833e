"""Comparisons that anybody can repeat: trials, sweeps, and what the benchmarks share."""
