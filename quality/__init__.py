"""Measure and show how good the embedded engine's swap is: `python -m quality --help`, or `make quality`."""
