"""Benchmarks: this package's edit step beside the arithmetic of the released editors, in one process."""
