"""Probe, plan segments, join, verify: all decoding happens in worker processes, none in this one."""

from faceswap.jobs import SegmentPlan
from faceswap.media.facts import (
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
from faceswap.media.worker import MediaWorker, partial_path

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
