"""Moves of deliveries: stored with a job's end, claimed by the node that sends them, delivered, postponed, given up."""

from __future__ import annotations

import json
import uuid
from collections.abc import Collection
from typing import Any

from yarl import URL

from ..deliveries import GIVE_UP_S, JITTER, LONGEST_PAUSE_S, Delivery, DeliveryKind, DeliveryState, webhook_body
from ..jobs import Job, JobState
from .connection import Row
from .database import Database, transaction
from .transaction import Transaction

LATEST_MS = int(LONGEST_PAUSE_S * (1 + JITTER) * 1000)
REDELIVERY_MS = 60_000
"""The time after an attempt before the next may be asked for."""
LISTED = 100
"""Deliveries of a job that are listed, the newest ones."""

_COLUMNS = (
    "id, prompt_id, kind, url, origin, body, state, created_at, due_at, give_up_at, attempts, attempted_at,"
    " delivered_at, last_status, last_error, holder,"
    " (SELECT owner FROM job WHERE job.prompt_id = delivery.prompt_id) AS owner,"
    " (SELECT traceparent FROM job WHERE job.prompt_id = delivery.prompt_id) AS traceparent"
)
_HELD = "id = ? AND state = 'waiting' AND holder = ? AND attempts = ?"
"""The condition under which an attempt is still the sender's own."""


class Deliveries(Database):
    """The moves of a delivery, one method each."""

    async def _add_deliveries(self, tx: Transaction, job: Job) -> None:
        """Store what is to be sent because a job has ended, in the transaction that ends it."""
        owed = []
        if job.webhook_url is not None:
            body = json.dumps(webhook_body(job), ensure_ascii=False)
            owed.append((DeliveryKind.WEBHOOK, job.webhook_url, body))
        if job.result_put_url is not None and job.state is JobState.SUCCESS:
            owed.append((DeliveryKind.RESULT, job.result_put_url, ""))
        if not owed:
            return
        created_at, due_at = await tx.now_ms(), await tx.monotonic_ms()
        await tx.execute_many(
            "INSERT INTO delivery (id, prompt_id, kind, url, origin, body, created_at, due_at, give_up_at)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [
                (
                    f"msg_{uuid.uuid4().hex}",
                    job.prompt_id,
                    kind,
                    url,
                    str(URL(url, encoded=True).origin()),
                    body,
                    created_at,
                    due_at,
                    due_at + int(GIVE_UP_S * 1000),
                )
                for kind, url, body in owed
            ],
        )

    async def claim_delivery(
        self,
        kind: DeliveryKind,
        holder: str,
        ttl_s: float,
        busy: Collection[str] = (),
        busy_owners: Collection[str] = (),
    ) -> Delivery | None:
        """Take the next delivery that is due for `ttl_s` seconds, counted as an attempt; None when there is none.

        Those to the origins that are `busy`, and of owners that are, are left out. Who was sending it and has not told
        of an end may have died. What is due later than the longest pause from now waits for a clock that was wrong: it
        is due now.
        """
        queue = self._engine.queue
        if queue is not None and not queue.waiting.deliveries:
            return None
        left_out = json.dumps(list(busy)), json.dumps(list(busy_owners))
        now = await self._engine.monotonic_ms()
        if not await self._read(self._due_delivery, kind, now, now + LATEST_MS, *left_out):
            return None
        return await self._take_delivery(kind, holder, ttl_s, left_out)

    @property
    def _due_delivery(self) -> str:
        """A query for the id of the delivery that is due next."""
        return (
            "SELECT id FROM delivery WHERE state = 'waiting' AND kind = ? AND (due_at <= ? OR due_at > ?)"
            f" AND origin NOT IN ({self._dialect.values}) AND NOT EXISTS (SELECT 1 FROM job"
            f" WHERE job.prompt_id = delivery.prompt_id AND job.owner IN ({self._dialect.values}))"
            " ORDER BY due_at, id LIMIT 1"
        )

    @transaction
    async def _take_delivery(
        self, tx: Transaction, kind: DeliveryKind, holder: str, ttl_s: float, left_out: tuple[str, str]
    ) -> Delivery | None:
        now = await tx.monotonic_ms()
        row = await tx.one(
            "UPDATE delivery SET holder = ?, attempts = attempts + 1, attempted_at = ?, due_at = ?"
            f" WHERE id = ({self._due_delivery}{self._dialect.skip_locked}) RETURNING {_COLUMNS}",
            holder,
            await tx.now_ms(),
            now + int(ttl_s * 1000),
            kind,
            now,
            now + LATEST_MS,
            *left_out,
        )
        return None if row is None else _delivery_of(row)

    @transaction
    async def keep_delivery(self, tx: Transaction, delivery: Delivery, ttl_s: float) -> bool:
        """Keep a delivery that is being sent for `ttl_s` seconds from now; False when it is not the sender's any more.

        It may be another's by now, or its job was erased.
        """
        due_at = await tx.monotonic_ms() + int(ttl_s * 1000)
        sql = f"UPDATE delivery SET due_at = ? WHERE {_HELD} RETURNING 1"
        return await tx.one(sql, due_at, *_held(delivery)) is not None

    @transaction
    async def end_delivery(
        self, tx: Transaction, delivery: Delivery, state: DeliveryState, status: int | None, error: str | None = None
    ) -> None:
        """Store that an attempt was the last one: what the receiver answered, or the error in a sentence."""
        delivered_at = await tx.now_ms() if state is DeliveryState.DELIVERED else None
        await tx.run(
            "UPDATE delivery SET state = ?, holder = NULL, delivered_at = ?, last_status = ?, last_error = ?"
            f" WHERE {_HELD}",
            state,
            delivered_at,
            status,
            error,
            *_held(delivery),
        )

    @transaction
    async def postpone_delivery(
        self, tx: Transaction, delivery: Delivery, pause_s: float, status: int | None, error: str
    ) -> DeliveryState:
        """Store that an attempt failed, to be made again after a pause, for the last time when its time is over.

        Returns the state it is in now: it has failed for good when this was that last attempt.
        """
        now = await tx.monotonic_ms()
        state = DeliveryState.WAITING if now < delivery.give_up_at else DeliveryState.FAILED
        await tx.run(
            f"UPDATE delivery SET state = ?, holder = NULL, due_at = ?, last_status = ?, last_error = ? WHERE {_HELD}",
            state,
            min(now + int(pause_s * 1000), delivery.give_up_at),
            status,
            error,
            *_held(delivery),
        )
        return state

    @transaction
    async def release_deliveries(self, tx: Transaction, holder: str) -> None:
        """Make due at once what a node was sending when it ended, for the next process of its name."""
        sql = "UPDATE delivery SET holder = NULL, due_at = ? WHERE state = 'waiting' AND holder = ?"
        await tx.run(sql, await tx.monotonic_ms(), holder)

    @transaction
    async def redeliver(self, tx: Transaction, prompt_id: str) -> bool:
        """Have all that a job has sent, or failed to send, sent again; False when there is nothing.

        What is being sent, or was within `REDELIVERY_MS`, is left as it is.
        """
        await tx.lock_job(prompt_id)
        now = await tx.monotonic_ms()
        row = await tx.one(
            "UPDATE delivery SET state = 'waiting', attempts = 0, delivered_at = NULL, due_at = ?, give_up_at = ?"
            " WHERE prompt_id = ? AND holder IS NULL AND coalesce(attempted_at, 0) <= ? RETURNING 1",
            now,
            now + int(GIVE_UP_S * 1000),
            prompt_id,
            await tx.now_ms() - REDELIVERY_MS,
        )
        return row is not None

    async def deliveries(self, prompt_id: str) -> list[Delivery]:
        """Return the deliveries of a job, the newest first."""
        sql = f"SELECT {_COLUMNS} FROM delivery WHERE prompt_id = ? ORDER BY created_at DESC, kind DESC, id LIMIT ?"
        return [_delivery_of(row) for row in await self._read(sql, prompt_id, LISTED)]


def _held(delivery: Delivery) -> tuple[Any, ...]:
    return delivery.id, delivery.holder, delivery.attempts


def _delivery_of(row: Row) -> Delivery:
    values = {name: row[name] for name in row.keys()}  # noqa: SIM118 - no dict
    values["kind"], values["state"] = DeliveryKind(values["kind"]), DeliveryState(values["state"])
    return Delivery(**values)
