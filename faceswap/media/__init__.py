"""Probing, cutting, joining and checking of media; all decoding happens in worker processes, none in this one."""

from ..jobs import SegmentPlan
from .facts import (
    ENGINE_FORMATS,
    AudioFacts,
    Credentials,
    CuttingFacts,
    FaceFacts,
    FacesFacts,
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
from .worker import Marking, MediaWorker, Signing, partial_path

__all__ = [
    "ENGINE_FORMATS",
    "AudioFacts",
    "Credentials",
    "CuttingFacts",
    "FaceFacts",
    "FacesFacts",
    "ImageFacts",
    "JoinFacts",
    "Marking",
    "MediaWorker",
    "PieceFacts",
    "Provenance",
    "SegmentPlan",
    "Signing",
    "Tag",
    "Verdict",
    "VideoFacts",
    "output_frames",
    "partial_path",
    "plan_segments",
]
