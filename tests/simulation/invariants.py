"""The promises that hold after every commit, every event and every request to a ComfyUI, and at the end.

Triggers in the simulated database write down every move of a job, a segment, an event number and a lease. They are read
after each commit, so that what is judged is what was committed, in the order in which it was, and by whom.
"""

from __future__ import annotations

import json
import sqlite3
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from faceswap.comfy.backend import EMBEDDED
from faceswap.deliveries import DeliveryState
from faceswap.events import SUPERSEDED_EVENTS, Event
from faceswap.jobs import TERMINAL, TRANSITIONS, JobState, SegmentState
from faceswap.store import JANITOR_LEASE

from .loop import WALL_S

if TYPE_CHECKING:
    from .comfyui import ComfyUI, Prompt
    from .node import Node
    from .users import Watcher
    from .world import World

TRIGGERS = """
CREATE TABLE move (id INTEGER PRIMARY KEY, kind TEXT, name TEXT, number INTEGER, was TEXT, now TEXT, more TEXT);
CREATE TRIGGER job_made AFTER INSERT ON job BEGIN
  INSERT INTO move (kind, name, now) VALUES ('job', NEW.prompt_id, NEW.state); END;
CREATE TRIGGER job_moved AFTER UPDATE OF state ON job WHEN OLD.state <> NEW.state BEGIN
  INSERT INTO move (kind, name, was, now, more)
  VALUES ('job', NEW.prompt_id, OLD.state, NEW.state, json_object('code', NEW.code, 'file', NEW.result_file,
    'sha256', NEW.result_sha256, 'frames', NEW.total_frames)); END;
CREATE TRIGGER job_gone AFTER DELETE ON job BEGIN
  INSERT INTO move (kind, name, was) VALUES ('job', OLD.prompt_id, OLD.state); END;
CREATE TRIGGER number_taken AFTER UPDATE OF last_seq ON job BEGIN
  INSERT INTO move (kind, name, was, now) VALUES ('number', NEW.prompt_id, OLD.last_seq, NEW.last_seq); END;
CREATE TRIGGER cancel_asked AFTER UPDATE OF cancel_requested ON job
  WHEN NOT OLD.cancel_requested AND NEW.cancel_requested BEGIN
  INSERT INTO move (kind, name) VALUES ('cancel', NEW.prompt_id); END;
CREATE TRIGGER files_given_up AFTER UPDATE OF inputs_erased, result_erased ON job
  WHEN NEW.inputs_erased + NEW.result_erased > OLD.inputs_erased + OLD.result_erased BEGIN
  INSERT INTO move (kind, name) VALUES ('erased', NEW.prompt_id); END;
CREATE TRIGGER event_made AFTER INSERT ON event BEGIN
  INSERT INTO move (kind, name, number, now) VALUES ('event', NEW.prompt_id, NEW.seq, NEW.type); END;
CREATE TRIGGER segment_moved AFTER UPDATE ON segment
  WHEN OLD.state <> NEW.state OR OLD.epoch IS NOT NEW.epoch OR OLD.comfy_prompt_id IS NOT NEW.comfy_prompt_id BEGIN
  INSERT INTO move (kind, name, number, was, now, more)
  VALUES ('segment', NEW.prompt_id, NEW.number, OLD.state, NEW.state, json_object('attempt', NEW.attempt, 'epoch',
    NEW.epoch, 'backend', NEW.backend, 'id', NEW.comfy_prompt_id, 'first', NEW.first_frame, 'count', NEW.frame_count,
    'old_epoch', OLD.epoch)); END;
CREATE TRIGGER lease_made AFTER INSERT ON lease BEGIN
  INSERT INTO move (kind, name, now, more) VALUES ('lease', NEW.name, NEW.holder, json_object('epoch', NEW.epoch,
    'expires_at', NEW.expires_at)); END;
CREATE TRIGGER lease_moved AFTER UPDATE ON lease BEGIN
  INSERT INTO move (kind, name, was, now, more) VALUES ('lease', NEW.name, OLD.holder, NEW.holder,
    json_object('epoch', NEW.epoch, 'expires_at', NEW.expires_at, 'old_epoch', OLD.epoch, 'old_expires_at',
    OLD.expires_at)); END;
CREATE TRIGGER lease_gone AFTER DELETE ON lease BEGIN
  INSERT INTO move (kind, name, was) VALUES ('lease', OLD.name, OLD.holder); END;
CREATE TRIGGER audit_line AFTER INSERT ON audit BEGIN
  INSERT INTO move (kind, name, now) VALUES ('audit', NEW.prompt_id, NEW.what); END;
CREATE TRIGGER delivery_made AFTER INSERT ON delivery BEGIN
  INSERT INTO move (kind, name, now, more) VALUES ('delivery', NEW.id, NEW.state, json_object('job', NEW.prompt_id));
  END;
CREATE TRIGGER delivery_moved AFTER UPDATE OF state ON delivery WHEN OLD.state <> NEW.state BEGIN
  INSERT INTO move (kind, name, was, now) VALUES ('delivery', NEW.id, OLD.state, NEW.state); END;
CREATE TRIGGER delivery_gone AFTER DELETE ON delivery BEGIN
  INSERT INTO move (kind, name, was) VALUES ('delivery', OLD.id, OLD.state); END;
CREATE TRIGGER engine_file_noted AFTER INSERT ON engine_file BEGIN
  INSERT INTO move (kind, name, more) VALUES ('file', NEW.backend,
    json_object('path', NEW.subfolder || '/' || NEW.name)); END;
CREATE TRIGGER abandoned AFTER INSERT ON abandoned_prompt BEGIN
  INSERT INTO move (kind, name) VALUES ('abandoned', NEW.comfy_prompt_id); END;
"""

SEGMENT_MOVES = {
    SegmentState.WAITING: {SegmentState.SUBMITTED, SegmentState.FAILED},
    SegmentState.SUBMITTED: {SegmentState.WAITING, SegmentState.DONE, SegmentState.FAILED, SegmentState.SUBMITTED},
    SegmentState.DONE: {SegmentState.WAITING},
    SegmentState.FAILED: {SegmentState.WAITING},
}
UNEXPLAINED = frozenset(
    {
        "frames_missing",
        "inputs_missing",
        "internal_error",
        "workflow_invalid",
        "workflow_missing",
    }
)
"""Codes of failures that nothing in the simulation gives a reason for."""
ENDS = {JobState.SUCCESS: "completed", JobState.FAILED: "error", JobState.CANCELLED: "cancelled"}
"""The last event of a job in each state that it can end in."""
RECORDED = {None: "erased", JobState.QUEUED: "retried"}
"""The audit line of a move to another state than an end, or to none."""
GRACE_S = 20.0
"""The time after the end of all faults from which on bounds are looked at."""
CANCEL_S = 5.0
"""The longest until the ComfyUIs that work on a job that was cancelled are asked to stop."""
LATE_S = 4.0
"""The longest that a stored event is on its way to a watcher."""


@dataclass
class Claim:
    """A prompt id that was committed with a segment. `retries` is how often its job had been retried by then."""

    job: str
    number: int
    attempt: int
    retries: int


@dataclass
class LeaseState:
    """A lease as it was last committed."""

    holder: str
    epoch: int
    expires_at: float


class Invariants:
    """Watches over everything that is promised. The first promise that does not hold ends the simulation."""

    def __init__(self, world: World, database: Path) -> None:
        self._world = world
        self._reader = sqlite3.connect(database, isolation_level=None)
        self._last_move = 0
        self.jobs: dict[str, JobState] = {}
        self.accepted: set[str] = set()
        """Jobs whose user was told their id."""
        self.uncertain: set[str] = set()
        """Jobs of which it could not be told whether they were committed."""
        self.unwanted: set[str] = set()
        """Jobs whose user asked for their deletion."""
        self.claims: dict[str, Claim] = {}
        self.leases: dict[str, LeaseState] = {}
        self.rejected: set[str] = set()
        """Prompts whose output did not pass the check."""
        self.received: set[str] = set()
        """The ids of the deliveries that a receiver has got."""
        self._undelivered: set[str] = set()
        self._ended_untold: set[str] = set()
        """Jobs that the commit which is judged has ended, and of which it has stored no delivery so far."""
        self._retries: defaultdict[str, int] = defaultdict(int)
        self._abandoned: set[str] = set()
        self._engine_files: set[tuple[str, str]] = set()
        """Files that were written down, with their ComfyUI, to be emptied when their job is erased."""
        self._numbers: defaultdict[str, int] = defaultdict(int)
        """The highest number that a stored event of a job has."""
        self._events: defaultdict[str, dict[int, tuple[str, float]]] = defaultdict(dict)
        """The stored events of each job by their numbers: the type, and when it was committed."""
        self._published: dict[tuple[str, int], str] = {}
        self.prompts: list[tuple[ComfyUI, Prompt]] = []

    def close(self) -> None:
        """Let go of the database."""
        self._reader.close()

    def _check(self, holds: bool, violation: str) -> None:
        if not holds:
            self._world.fail(violation)

    def _one(self, sql: str, *parameters: Any) -> Any:
        return self._reader.execute(sql, parameters).fetchone()

    # After every commit.

    def committed(self, node: Node, now_ms: int) -> None:
        """Judge what a node has just committed, which read the clock that leases are measured with at `now_ms`."""
        rows = self._reader.execute("SELECT * FROM move WHERE id > ? ORDER BY id", (self._last_move,)).fetchall()
        self._check_record(rows)
        for id_, kind, name, number, was, now, more in rows:
            self._last_move = id_
            details = json.loads(more) if more else {}
            if kind in ("job", "segment", "lease", "abandoned"):
                self._world.note(f"{node.name} commits {kind} {name} {number or 0}: {was} → {now} {more or ''}")
            match kind:
                case "job":
                    self._job_moved(node, name, was, now, details)
                case "segment":
                    self._segment_moved(node, name, number, was, now, details)
                case "lease" if now is None:
                    del self.leases[name]
                case "lease":
                    self._lease_moved(node, name, now, details, now_ms)
                case "event":
                    self._check(number > self._numbers[name], f"event number {number} of {name} is used again: {now}")
                    self._numbers[name] = max(number, self._numbers[name])
                    self._events[name][number] = (now, self._world.scheduler.now)
                case "delivery":
                    self._delivery_moved(name, now, details)
                case "cancel" if self._is_calm:
                    self._world.environment.call_later(CANCEL_S, self._check_stopped, name, self._at_work(name))
                case "erased" if self._world.is_shared:  # no time to live is as short as a simulation
                    self._check(name in self.unwanted, f"{node.name} erases files of {name} too early")
                case "number":
                    self._check(int(now) > int(was), f"last_seq of {name} goes from {was} to {now}")
                case "abandoned":
                    self._abandoned.add(name)
                case "file":
                    self._engine_files.add((name, details["path"]))
        silent = self._ended_untold
        self._check(not silent, f"{node.name} ends {sorted(silent)} without the delivery that tells of it")

    def _check_record(self, moves: Sequence[tuple[Any, ...]]) -> None:
        """Check that the audit lines of a commit are those of its moves of jobs, each once, in order."""
        expected, lines = [], []
        for _, kind, name, _, was, now, _ in moves:
            if kind == "audit" and not now.endswith("_erased"):
                lines.append((name, now))
            elif kind == "job" and now != JobState.PROCESSING:
                what = "accepted" if was is None else RECORDED.get(now, "ended")
                expected.append((name, what))
        self._check(lines == expected, f"the record says {lines} of {expected}")

    def _job_moved(self, node: Node, prompt_id: str, was: str | None, now: str | None, details: dict[str, Any]) -> None:
        if was is None:
            self._check(now == JobState.QUEUED and prompt_id not in self.jobs, f"{prompt_id} begins as {now}")
        else:
            self._check(self.jobs.get(prompt_id) == was, f"{prompt_id} was {was} without a move that led there")
        if now is None:
            self._check(prompt_id in self.unwanted, f"{prompt_id} was deleted and nobody asked for that")
            del self.jobs[prompt_id]
            self._ended_untold.discard(prompt_id)
            return
        state = self.jobs[prompt_id] = JobState(now)
        if was is None:
            return
        self._check(state in TRANSITIONS[JobState(was)], f"{prompt_id} goes from {was} to {now}")
        if state in TERMINAL:
            self._ended_untold.add(prompt_id)
        if state is JobState.QUEUED:
            self._retries[prompt_id] += 1
        elif state is JobState.SUCCESS:
            lease = self.leases.get(f"join:{prompt_id}")
            mine = lease is not None and lease.holder == node.holder
            self._check(mine, f"{node.name} ends {prompt_id}, whose joining is another's: {lease}")
            self._check_result(prompt_id, details)
        elif state is JobState.FAILED:
            explained = details["code"] not in UNEXPLAINED or prompt_id in self.unwanted
            self._check(explained, f"{prompt_id} failed with {details['code']}")
            if details["code"] == "engine_unreachable":
                holds = [name for name, lease in self.leases.items() if lease.holder == node.holder]
                knows = any(name.startswith("engines" if self._world.is_shared else "backend:") for name in holds)
                self._check(knows, f"{node.name} ends {prompt_id} for want of an engine and may ask none")

    def _check_result(self, prompt_id: str, details: dict[str, Any]) -> None:
        """Check that a job in SUCCESS has its file, and the file each frame once, in order."""
        results = self._world.results()
        name = self._name_of_result(results, prompt_id, details["file"], details["sha256"])
        if name is None:
            self._world.fail(f"{prompt_id} is in SUCCESS without its file")
            return
        next_frame = 0
        for part in json.loads(results[name]):
            self._check((part["job"], part["first"]) == (prompt_id, next_frame), f"the result of {prompt_id} is wrong")
            next_frame += part["count"]
        frames = details["frames"]
        self._check(next_frame == frames, f"the result of {prompt_id} has {next_frame} of {frames} frames")

    def _name_of_result(self, results: Collection[str], prompt_id: str, filename: str, sha256: str) -> str | None:
        """Return the name under which the result of a job is found; None when it is not there."""
        if not self._world.is_shared:
            return filename if filename in results else None
        own = (name for name in results if name.startswith(f"{prompt_id}/") and name.endswith(f"-{sha256}.mp4"))
        return next(own, None)

    def _segment_moved(
        self, node: Node, prompt_id: str, number: int, was: str, now: str, details: dict[str, Any]
    ) -> None:
        node.moved()
        name = f"segment {number} of {prompt_id}"
        before, after = SegmentState(was), SegmentState(now)
        self._check(after in SEGMENT_MOVES[before], f"{name} goes from {was} to {now}")
        if SegmentState.SUBMITTED in (before, after) and after is not SegmentState.FAILED:
            lease = self.leases.get(f"backend:{details['backend']}")
            mine = lease is not None and lease.holder == node.holder and lease.epoch == details["epoch"]
            self._check(mine, f"{node.name} moves {name} to {now} by epoch {details['epoch']}, which is past: {lease}")
        if before is SegmentState.WAITING and after is SegmentState.SUBMITTED:
            self._check(details["id"] not in self.claims, f"the id {details['id']} of {name} was used before")
        if after is SegmentState.SUBMITTED:
            self.claims[details["id"]] = Claim(prompt_id, number, details["attempt"], self._retries[prompt_id])

    def _delivery_moved(self, id_: str, now: str | None, details: dict[str, Any]) -> None:
        if details:
            self._ended_untold.discard(details["job"])
        if now == DeliveryState.WAITING:
            self._undelivered.add(id_)
        else:
            self._undelivered.discard(id_)
        self._check(now != DeliveryState.FAILED, f"the delivery {id_} is given up too early")
        self._check(now != DeliveryState.DELIVERED or id_ in self.received, f"{id_} counts as delivered and was not")

    def _lease_moved(self, node: Node, name: str, holder: str, details: dict[str, Any], now: int) -> None:
        lease = self.leases.get(name)
        if lease is None or lease.epoch != details["epoch"]:
            node.moved()
        after = LeaseState(holder, details["epoch"], details["expires_at"])
        if lease is not None:
            self._check(after.epoch >= lease.epoch, f"the epoch of {name} goes from {lease.epoch} to {after.epoch}")
            if after.epoch == lease.epoch:
                self._check(after.holder == lease.holder, f"{name} changes hands within epoch {lease.epoch}")
                late = after.expires_at > lease.expires_at and now > lease.expires_at
                self._check(not late, f"{node.name} renews {name} {now - lease.expires_at:.0f} ms after it ran out")
            elif after.holder != lease.holder:
                early = lease.expires_at - now
                self._check(
                    early <= 0, f"{node.name} takes {name} from {lease.holder} {early:.0f} ms before it runs out"
                )
        self.leases[name] = after

    # After every event.

    def published(self, node: Node, event: Event) -> None:
        """Judge an event that a node's watchers are told."""
        key, content = (event.prompt_id, event.seq), json.dumps([event.type, event.data], sort_keys=True)
        self._check(self._published.setdefault(key, content) == content, f"two events are number {key}")
        last = node.last_published.get(event.prompt_id, 0)
        self._check(event.seq > last, f"{node.name} publishes {event.seq} of {event.prompt_id} after {last}")
        node.last_published[event.prompt_id] = event.seq
        if event.prompt_id in self.unwanted:
            return
        stored = self._one("SELECT type FROM event WHERE prompt_id = ? AND seq = ?", *key)
        if event.type in SUPERSEDED_EVENTS:
            row = self._one("SELECT last_seq FROM job WHERE prompt_id = ?", event.prompt_id)
            self._check(row is not None and row[0] >= event.seq, f"{event.type} {key} is told before it is numbered")
        else:
            self._check(stored == (event.type,), f"{event.type} {key} is told before it is committed: {stored}")

    def heard(self, watcher: Watcher, event: Event) -> None:
        """Judge an event that a watcher hears."""
        name = f"a watcher of {event.prompt_id} at {watcher.node.name if watcher.node else None}"
        self._check(event.seq > watcher.last, f"{name} hears {event.seq} after {watcher.last}")
        if event.type not in SUPERSEDED_EVENTS:
            kind, at = self._events[event.prompt_id].get(event.seq, (None, 0.0))
            self._check(kind == event.type, f"{name} hears {event.type} {event.seq}, which is {kind}")
            watcher.heard.append(event.seq)
            late_s = self._world.scheduler.now - max(at, watcher.since)
            self._check(late_s < LATE_S or at < self._calm_from, f"{name} hears {event.seq} {late_s:.1f} s late")

    def heard_all(self, watcher: Watcher) -> None:
        """Judge what a watcher has heard in all, which was told that this is the end."""
        events = self._events[watcher.prompt_id]
        stored = [seq for seq, (kind, _) in events.items() if kind not in SUPERSEDED_EVENTS and seq <= watcher.last]
        name = f"a watcher of {watcher.prompt_id}"
        if watcher.prompt_id not in self.unwanted:  # of a job that is erased, the rest is gone
            self._check(watcher.heard == stored, f"{name} hears {watcher.heard} of {stored}")
            ends = [events[seq][0] for seq in watcher.heard[-1:]]
            self._check(set(ends) <= set(ENDS.values()) and bool(ends), f"{name} is told that {ends} is the end")

    def not_found(self, watcher: Watcher) -> None:
        """Judge that a watcher is told that there is no such job."""
        self._check(
            watcher.prompt_id in self.unwanted, f"a watcher of {watcher.prompt_id} is told that it is not there"
        )

    @property
    def _calm_from(self) -> float:
        """The time from which on bounds are looked at."""
        return self._world.faults_end + GRACE_S

    @property
    def _is_calm(self) -> bool:
        return self._world.scheduler.now > self._calm_from

    def _at_work(self, prompt_id: str) -> list[tuple[ComfyUI, Prompt]]:
        """Return the prompts of a job that ComfyUIs have in hand."""
        return [
            (comfy, prompt)
            for comfy in self._world.comfies
            for prompt in (comfy.running, *comfy.pending)
            if prompt is not None and prompt.job == prompt_id
        ]

    def _check_stopped(self, prompt_id: str, before: list[tuple[ComfyUI, Prompt]]) -> None:
        """Check that what was at work on a job when it was cancelled was asked to stop, where a node could do so."""
        for comfy, prompt in before:
            goes_on = (comfy, prompt) in self._at_work(prompt_id) and not prompt.stop_asked
            excused = prompt.prompt_id in self._abandoned or all(node.machine is None for node in comfy.named_by)
            self._check(
                excused or not goes_on, f"{comfy.name} goes on with {prompt.prompt_id}, whose job was cancelled"
            )

    # At every request to a ComfyUI that sends it a file, or queues a prompt.

    def uploaded(self, comfy: ComfyUI, path: str) -> None:
        """Judge a file that a node is about to send."""
        is_ours = comfy.name.startswith(EMBEDDED)  # whose folders are deleted themselves
        is_noted = is_ours or (comfy.name, path) in self._engine_files
        self._check(is_noted, f"{path} is sent to {comfy.name} before it is written down")

    def sent(self, comfy: ComfyUI, prompt_id: str) -> None:
        """Judge a prompt that a node is about to send."""
        node, lease = self._world.running_node, self.leases[f"backend:{comfy.name}"]
        is_held = lease.holder == node.holder and (not node.world.is_shared or lease.expires_at > self._world.wall_ms)
        self._check(is_held, f"{node.name} sends {prompt_id} to {comfy.name}, whose lease is another's: {lease}")
        self._check(prompt_id in self.claims, f"{prompt_id} is sent to {comfy.name} before its id is committed")

    def queued(self, comfy: ComfyUI, prompt: Prompt) -> None:
        """Judge a prompt that a ComfyUI is about to queue.

        One that was given up on its way, in the buffer of a frozen ComfyUI, cannot be taken back: it is stopped.
        """
        claim = self.claims[prompt.prompt_id]
        same = comfy.prompts.get(prompt.prompt_id)
        self._check(same is None, f"{comfy.name} is sent {prompt.prompt_id} again, which it knows")
        for other_comfy, other in self.prompts:
            if (
                other.job == prompt.job
                and other is not same
                and other.first < prompt.first + prompt.count
                and prompt.first < other.first + other.count
                and other_comfy.prompts.get(other.prompt_id) is other
                and other.known
                and prompt.prompt_id not in self._abandoned
                and not self._is_excused(other, claim)
            ):
                self._world.fail(
                    f"{comfy.name} is sent {prompt.prompt_id} although {other_comfy.name} knows {other.prompt_id}"
                    f" ({other.state}), which is the same work"
                )
        self.prompts.append((comfy, prompt))

    def _is_excused(self, prompt: Prompt, claim: Claim) -> bool:
        """Return whether work may be done again although a ComfyUI knows a prompt of it."""
        return (
            prompt.stop_asked
            or prompt.prompt_id in self._abandoned
            or prompt.prompt_id in self.rejected
            or (prompt.told and prompt.unfetched)
            or self.claims[prompt.prompt_id].retries < claim.retries
        )

    def is_unwanted(self, *ids: str) -> bool:
        """Return whether one of these is a job that was to be deleted, or a prompt of it."""
        jobs = {self.claims[id_].job if id_ in self.claims else id_ for id_ in ids}
        return not jobs.isdisjoint(self.unwanted)

    # At the end.

    def all_ended(self) -> bool:
        """Return whether nothing is left to do, and every watcher knows that."""
        world = self._world
        return (
            all(state in TERMINAL for state in self.jobs.values())
            and all(comfy.running is None and not comfy.pending and self._is_held(comfy) for comfy in world.comfies)
            and all(watcher.ended for watcher in world.users.watchers)
            and all(node.is_idle for node in world.nodes)
            and not self._undelivered
            and not world.jobs_with_copies()
        )

    def _is_held(self, comfy: ComfyUI) -> bool:
        """Return whether one of the nodes that live and name a ComfyUI holds the lease on it, if there is one."""
        holders = {node.holder for node in comfy.named_by if node.machine is not None}
        lease = self.leases.get(f"backend:{comfy.name}")
        return not holders or (lease is not None and lease.holder in holders)

    def check_end(self) -> None:
        """Judge what is there when faults have stopped and everything had time to end."""
        stored = dict(self._reader.execute("SELECT prompt_id, state FROM job").fetchall())
        self._check(stored == self.jobs, f"the jobs are {stored}, not {self.jobs}")
        for prompt_id in sorted(self.accepted - self.unwanted):
            self._check(prompt_id in stored, f"{prompt_id} was accepted and is lost")
        for prompt_id, state in stored.items():
            self._check(state in TERMINAL, f"{prompt_id} did not end: {self._story(prompt_id)}")
            last = self._one("SELECT type FROM event WHERE prompt_id = ? ORDER BY seq DESC LIMIT 1", prompt_id)
            self._check(last == (ENDS.get(state),), f"the last event of {prompt_id}, {state}, is {last}")
        for watcher in self._world.users.watchers:
            self._check(watcher.ended, f"a watcher of {watcher.prompt_id} at {watcher.node} still waits")
        for node in self._world.nodes:
            self._check(node.is_idle, f"{node.name} still has {node.work}")
        for node in self._world.nodes:
            if node.gone_at is not None:
                end_ms = (WALL_S + node.gone_at + self._world.timeouts.lease_s) * 1000
                held = {name for name, lease in self.leases.items() if lease.holder == node.holder} - {JANITOR_LEASE}
                late = sorted(name for name in held if self.leases[name].expires_at > end_ms)
                self._check(not late, f"{node.name} is gone and still holds {late}")
        for comfy in self._world.comfies:
            self._check(self._is_held(comfy), f"{comfy.name} is held by {self.leases.get(f'backend:{comfy.name}')}")
        for comfy in self._world.comfies:
            self._check(comfy.running is None and not comfy.pending, f"{comfy.name} still works for an ended job")
        self._check(not self._undelivered, f"what jobs owed was not delivered: {sorted(self._undelivered)}")
        self._check_results()
        stray = self._world.jobs_with_files() - stored.keys() - self._interrupted_uploads()
        self._check(not stray, f"files of no job: {sorted(stray)}")
        copies = self._world.jobs_with_copies()
        self._check(not copies, f"copies of the files of jobs that have ended: {sorted(copies)}")

    def _interrupted_uploads(self) -> set[str]:
        """Return the uploads that are left to the next start: of nodes that are gone, or perhaps of a job."""
        gone = {node.holder for node in self._world.nodes if node.gone_at is not None}
        marked = self._world.marked_uploads()
        return {id_ for id_, node in marked.items() if node in gone or id_ in self.uncertain}

    def _check_results(self) -> None:
        """Check that the results are there, and nothing else is: of jobs that were half deleted something may be."""
        sql = "SELECT prompt_id, result_file, result_sha256 FROM job WHERE state = 'SUCCESS' AND result_erased = 0"
        results = self._world.results()
        for prompt_id, filename, sha256 in self._reader.execute(sql).fetchall():
            name = self._name_of_result(results, prompt_id, filename, sha256)
            self._check(name is not None, f"the result of {prompt_id} is not there: {sorted(results)}")
            results.pop(name or "", None)
        erased = dict(self._reader.execute("SELECT result_file, prompt_id FROM job WHERE result_erased").fetchall())
        left = {name for name in results if erased.get(name, name.partition("/")[0]) not in self.unwanted}
        self._check(not left, f"results of no job: {sorted(left)}")

    def _story(self, prompt_id: str) -> str:
        job = self._one("SELECT state, step, cancel_requested FROM job WHERE prompt_id = ?", prompt_id)
        sql = "SELECT number, state, attempt, backend, not_before FROM segment WHERE prompt_id = ?"
        return f"{job} {self._reader.execute(sql, (prompt_id,)).fetchall()} {self.leases}"
