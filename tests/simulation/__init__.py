"""The service under simulated time: see run.py."""
