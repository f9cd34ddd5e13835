"""The embedded engine: a small server that speaks ComfyUI's protocol and swaps faces on the CPU."""
