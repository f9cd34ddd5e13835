"""Probing, cutting, joining and checking of media; all decoding happens in worker processes, none in this one."""

from typing import TYPE_CHECKING, Any

from .facts import (
    ENGINE_FORMATS,
    AudioFacts,
    Credentials,
    CuttingFacts,
    FaceFacts,
    FacesFacts,
    FrameRange,
    ImageFacts,
    JoinFacts,
    PieceFacts,
    Provenance,
    Tag,
    Verdict,
    VideoFacts,
    output_frames,
    plan_segments,
)
from .paths import partial_path

if TYPE_CHECKING:
    from .worker import Marking, MediaWorker, Signing

__all__ = [
    "ENGINE_FORMATS",
    "AudioFacts",
    "Credentials",
    "CuttingFacts",
    "FaceFacts",
    "FacesFacts",
    "FrameRange",
    "ImageFacts",
    "JoinFacts",
    "Marking",
    "MediaWorker",
    "PieceFacts",
    "Provenance",
    "Signing",
    "Tag",
    "Verdict",
    "VideoFacts",
    "output_frames",
    "partial_path",
    "plan_segments",
]


def __getattr__(name: str) -> Any:
    """Load this process's side when it is asked for: a worker, which is made of this package too, starts without it."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import worker

    return getattr(worker, name)
