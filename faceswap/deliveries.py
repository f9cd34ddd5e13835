"""Deliveries, sent because a job has ended: their states, the signature of a webhook, the pauses. Pure."""

from __future__ import annotations

import base64
import enum
import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from yarl import URL

from .jobs import Job, JobState, iso

GIVE_UP_S = 24 * 3600.0
"""The time after which a delivery that always failed is given up."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 5.0, 4 * 3600.0
"""The pause after the first failure, doubled after each, and the longest."""
JITTER = 0.25
"""The share by which a pause may be longer or shorter, so that many do not come at the same time."""

WEBHOOK_TYPES = {
    JobState.SUCCESS: "job.completed",
    JobState.FAILED: "job.failed",
    JobState.CANCELLED: "job.cancelled",
}


class DeliveryKind(enum.StrEnum):
    """The things that are sent."""

    WEBHOOK = "webhook"
    """The status object, by `POST` to the job's `webhook_url`."""
    RESULT = "result"
    """The result's file, by `PUT` to the job's `result_put_url`."""


class DeliveryState(enum.StrEnum):
    """The state of a delivery."""

    WAITING = "waiting"
    """To be sent, again or for the first time, or being sent now."""
    DELIVERED = "delivered"
    """The receiver answered with a status from 200 to 299."""
    FAILED = "failed"
    """Given up; it may be asked for again."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """A delivery as the database holds it. Times are Unix milliseconds."""

    id: str
    prompt_id: str
    kind: DeliveryKind
    url: str
    origin: str
    body: str
    state: DeliveryState
    created_at: int
    due_at: int
    give_up_at: int
    attempts: int
    attempted_at: int | None
    delivered_at: int | None
    last_status: int | None
    last_error: str | None
    holder: str | None
    owner: str | None
    traceparent: str | None
    """The trace of the request that made the job (W3C Trace Context)."""

    def describe(self) -> dict[str, Any]:
        """Return what its owner is told. What follows the path of its URL may be a secret, and is left out."""
        waits = self.state is DeliveryState.WAITING and self.holder is None
        return {
            "id": self.id,
            "kind": self.kind.value,
            "url": str(URL(self.url, encoded=True).with_query(None)),
            "state": self.state.value,
            "attempts": self.attempts,
            "created_at": iso(self.created_at),
            "attempted_at": iso(self.attempted_at),
            "delivered_at": iso(self.delivered_at),
            "next_attempt_at": iso(self.due_at) if waits else None,
            "last_status": self.last_status,
            "last_error": self.last_error,
        }


def webhook_body(job: Job) -> dict[str, Any]:
    """Return the body of a webhook about a job that has ended."""
    return {"type": WEBHOOK_TYPES[job.state], "timestamp": iso(job.finished_at), "data": job.status()}


def signature(secrets: Sequence[bytes], delivery_id: str, timestamp: int, body: bytes) -> str:
    """Sign a webhook with each secret, as Standard Webhooks says: HMAC-SHA256 of `id.timestamp.body`."""
    signed = f"{delivery_id}.{timestamp}.".encode() + body
    digests = (hmac.digest(secret, signed, hashlib.sha256) for secret in secrets)
    return " ".join(f"v1,{base64.b64encode(digest).decode()}" for digest in digests)


def pause_s(failures: int, chance: float) -> float:
    """Return the pause after so many failures; `chance` from 0 to 1 makes it shorter or longer."""
    pause = min(FIRST_PAUSE_S * 2.0 ** min(failures - 1, 32), LONGEST_PAUSE_S)
    return pause * (1 - JITTER + 2 * JITTER * chance)
