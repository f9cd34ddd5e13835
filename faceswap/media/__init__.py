"""Probing, cutting, joining and checking of media; all decoding happens in worker processes, none in this one."""

from ..jobs import SegmentPlan
from .facts import (
    AudioFacts,
    CuttingFacts,
    ImageFacts,
    JoinFacts,
    PieceFacts,
    Verdict,
    VideoFacts,
    output_frames,
    plan_segments,
)
from .worker import MediaWorker, partial_path

__all__ = [
    "AudioFacts",
    "CuttingFacts",
    "ImageFacts",
    "JoinFacts",
    "MediaWorker",
    "PieceFacts",
    "SegmentPlan",
    "Verdict",
    "VideoFacts",
    "output_frames",
    "partial_path",
    "plan_segments",
]
