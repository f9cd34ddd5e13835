"""The counters of this process that `GET /metrics` shows; what parts of it show at any time is read when asked for."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector

from .events import Event
from .jobs import TERMINAL, JobState

REGISTRY = CollectorRegistry(auto_describe=True)
"""The counters of the whole process, whichever part of it counts."""

_STAGE_BUCKETS_S = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600)

JOBS_ACCEPTED = Counter("faceswap_jobs_accepted", "Jobs accepted by this node.", registry=REGISTRY)
JOBS_ENDED = Counter("faceswap_jobs_ended", "Jobs ended by this node, by their end.", ["state"], registry=REGISTRY)
JOBS_FAILED = Counter("faceswap_jobs_failed", "Jobs failed at this node, by the code.", ["code"], registry=REGISTRY)
STAGE_S = Histogram(
    "faceswap_stage_seconds",
    "Time that a stage of a job took: receive, probe, queue, upload, swap, collect, join, deliver.",
    ["stage", "outcome"],
    buckets=_STAGE_BUCKETS_S,
    registry=REGISTRY,
)
RECEIVED_BYTES = Counter("faceswap_received_bytes", "Bytes of videos and pictures taken in.", registry=REGISTRY)
SENT_BYTES = Counter("faceswap_sent_bytes", "Bytes of results sent to clients.", registry=REGISTRY)
REQUESTS = Counter(
    "faceswap_http_requests",
    "Requests answered, by route and status.",
    ["method", "route", "status"],
    registry=REGISTRY,
)
LEASES_LOST = Counter("faceswap_leases_lost", "Leases that another node may have taken.", registry=REGISTRY)

for _state in sorted(TERMINAL):
    JOBS_ENDED.labels(_state)
ProcessCollector(registry=REGISTRY)

_ENDS = {"completed": JobState.SUCCESS, "error": JobState.FAILED, "cancelled": JobState.CANCELLED}


def count_event(event: Event) -> None:
    """Count an event that this node has committed."""
    if event.type == "queued":
        JOBS_ACCEPTED.inc()
    elif event.type in _ENDS:
        JOBS_ENDED.labels(_ENDS[event.type]).inc()
        if event.type == "error":
            JOBS_FAILED.labels(event.data["code"]).inc()
