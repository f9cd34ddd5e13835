"""A durable service that swaps faces in videos with ComfyUI, or with its own embedded engine."""

__version__ = "0.1.0"
