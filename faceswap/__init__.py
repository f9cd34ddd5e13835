"""A durable service that swaps faces in videos with ComfyUI, or with its own embedded engine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .client import FaceSwap, FaceSwapError, JobFailed, Result, Upload

__version__ = "0.1.0"

__all__ = ["FaceSwap", "FaceSwapError", "JobFailed", "Result", "Upload", "__version__"]


def __getattr__(name: str) -> Any:
    """Import the client when it is asked for: the service needs none of it."""
    if name in __all__:
        from . import client

        return getattr(client, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
