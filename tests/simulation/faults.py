"""Everything that goes wrong in a world, until it is healed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .comfyui import ComfyUI
    from .loop import Machine
    from .node import Node
    from .world import World

PAUSES_S = (2.0, 5.0, 15.0)
"""Mean times between two faults, one of which a world has."""


class Faults:
    """The faults of one world. `over` once nothing goes wrong any more."""

    def __init__(self, world: World) -> None:
        self.over = False
        self._world = world
        self._random = world.random
        self._pause_s = self._random.choice(PAUSES_S)
        kinds = [
            self.crash,
            self.crash,
            self.freeze,
            self.restart_comfy,
            self.freeze_comfy,
            self.trouble_comfy,
            self.lying_comfy,
            self.drop_sockets,
            self.forget,
            self.database_away,
            self.disk_full,
            self.clock_jump,
            self.media_trouble,
            self.stop,
        ]
        if world.is_shared:
            kinds += [
                self.freeze,
                self.cut_off,
                self.cut_off,
                self.lose_answers,
                self.database_restart,
                self.cut_way,
                self.roll,
                self.die_for_good,
            ]
        if world.bucket is not None:
            kinds += [self.files_away, self.lose_answers_of_files]
        self._kinds = self._random.sample(kinds, self._random.randint(1, len(kinds)))

    async def run(self) -> None:
        """Let one thing after another go wrong, until cancelled."""
        while True:
            await asyncio.sleep(self._random.expovariate(1 / self._pause_s))
            fault = self._random.choice(self._kinds)
            self._world.counts[fault.__name__] += 1
            fault()

    def heal(self) -> None:
        """Let nothing more go wrong, and have what only an operator can put right put right."""
        world = self._world
        world.note("faults are over")
        self.over = True
        world.database_away = world.disk_full = False
        world.media_trouble = 0.0
        for comfy in world.comfies:
            comfy.trouble = comfy.lies = 0.0
            comfy.cut_from.clear()
            if comfy.frozen:
                comfy.thaw()
            stuck = comfy.running is not None and comfy.running.fate == "stuck"
            if stuck or any(prompt.fate != "success" for prompt in comfy.pending):
                comfy.die()
            comfy.start()
        if world.bucket is not None:
            world.bucket.heal()
        for node in world.nodes:
            node.way.heal()
            if node.machine is None:
                self._start(node)
            else:
                node.machine.frozen = False
                node.machine.defuse()
            node.on_move = None

    def _for_a_while(self, longest_s: float, undo: Callable[[], None]) -> None:
        self._world.environment.call_later(self._random.uniform(0.1, longest_s), undo)

    # Nodes.

    def _strike(self, node: Node, machine: Machine, action: Callable[[], None]) -> None:
        """Do something to a machine between two callbacks: some time soon, or soon after one of its moves."""
        steps = self._random.randrange(self._random.choice((10, 100, 1000)))
        if self._random.random() < 0.5:
            machine.light_fuse(steps, action)
        else:
            node.on_move = lambda: machine.light_fuse(steps // 10, action)

    def crash(self) -> None:
        """Kill a node."""
        node = self._random.choice(self._world.nodes)
        if node.machine is None:
            return

        def crash() -> None:
            node.kill()
            self._for_a_while(self._random.choice((1.0, 5.0, 40.0)), lambda: self._start(node))

        self._strike(node, node.machine, crash)

    def stop(self) -> None:
        """Stop a node as its supervisor does, and start it again."""
        node = self._random.choice(self._world.nodes)
        self._restart(node, self._random.uniform(0.1, 5.0), lambda: None)

    def roll(self) -> None:
        """Restart all nodes, one after the other, as an upgrade does."""
        nodes = iter(self._world.nodes)

        def next_one() -> None:
            node = next(nodes, None)
            if node is not None and not self.over:
                self._restart(node, self._random.uniform(0.1, 3.0), next_one)

        self._world.note("all nodes are restarted")
        next_one()

    def _restart(self, node: Node, pause_s: float, then: Callable[[], None]) -> None:
        def start() -> None:
            self._start(node)
            self._world.environment.call_later(self._random.uniform(0.1, 5.0), then)

        if node.machine is None or node.machine.frozen or node.stopping:
            then()
        else:
            node.stop(lambda: self._world.environment.call_later(pause_s, start))

    def die_for_good(self) -> None:
        """Kill a node that nobody starts again, where others can do its work."""
        world = self._world
        node = self._random.choice(world.nodes)
        left = {other for other in world.nodes if other is not node and other.gone_at is None}
        if node.machine is not None and any(left.intersection(comfy.named_by) for comfy in world.comfies):
            world.note(f"{node.name} is gone for good")
            node.gone_at = world.scheduler.now
            node.kill()

    def freeze(self) -> None:
        """Stop a node as by SIGSTOP, and let it go on."""
        node = self._random.choice(self._world.nodes)
        machine = node.machine
        if machine is None:
            return

        def thaw() -> None:
            if machine.frozen:
                self._world.note(f"{machine.name} thaws")
                machine.frozen = False

        def freeze() -> None:
            self._world.note(f"{node.name} is frozen")
            machine.frozen = True
            self._for_a_while(self._random.choice((1.0, 10.0, 60.0)), thaw)

        self._strike(node, machine, freeze)

    def clock_jump(self) -> None:
        """Set the clock of a node wrong."""
        node = self._random.choice(self._world.nodes)
        node.clock_s = self._random.choice((-1, 1)) * self._random.choice((1.0, 60.0, 3600.0, 86400.0))
        self._world.note(f"the clock of {node.name} is off by {node.clock_s} s")
        if node.machine is not None:
            node.machine.clock_s = node.clock_s

    def media_trouble(self) -> None:
        """Have media workers fail now and then."""
        self._world.media_trouble = 0.5
        self._for_a_while(10.0, lambda: setattr(self._world, "media_trouble", 0.0))

    def disk_full(self) -> None:
        """Leave no room on the disk."""
        self._world.note("the disk is full")
        self._world.disk_full = True
        self._for_a_while(self._random.choice((1.0, 15.0)), lambda: setattr(self._world, "disk_full", False))

    def _start(self, node: Node) -> None:
        if node.machine is None and node.gone_at is None:
            node.start()

    # ComfyUIs.

    def _any_comfy(self) -> ComfyUI:
        return self._random.choice(self._world.comfies)

    def restart_comfy(self) -> None:
        """Have a ComfyUI die and come again after a while."""
        self._world.restart(self._any_comfy())

    def freeze_comfy(self) -> None:
        """Have a ComfyUI answer nothing for a while."""
        comfy = self._any_comfy()

        def thaw() -> None:
            if comfy.frozen:
                self._world.note(f"{comfy.name} thaws")
                comfy.thaw()

        if comfy.up and not comfy.frozen:
            self._world.note(f"{comfy.name} is frozen")
            comfy.freeze()
            self._for_a_while(self._random.choice((1.0, 10.0, 40.0)), thaw)

    def trouble_comfy(self) -> None:
        """Let requests to a ComfyUI come to nothing, or seem to."""
        comfy = self._any_comfy()
        comfy.trouble = self._random.choice((0.1, 0.5, 1.0))
        self._world.note(f"{comfy.name} cannot be relied on: {comfy.trouble}")
        self._for_a_while(20.0, lambda: setattr(comfy, "trouble", 0.0))

    def lying_comfy(self) -> None:
        """Let prompts of a ComfyUI not end as they should."""
        comfy = self._any_comfy()
        comfy.lies = self._random.choice((0.2, 0.7))
        self._for_a_while(20.0, lambda: setattr(comfy, "lies", 0.0))

    def drop_sockets(self) -> None:
        """Cut the sockets of a ComfyUI."""
        comfy = self._any_comfy()
        self._world.note(f"{comfy.name} loses its sockets")
        comfy.drop_sockets()

    def forget(self) -> None:
        """Let a ComfyUI forget a prompt that has ended."""
        self._any_comfy().forget()

    def cut_way(self) -> None:
        """Cut one node off from a ComfyUI that others may reach."""
        comfy, node = self._any_comfy(), self._random.choice(self._world.nodes)
        if not comfy.is_embedded:
            self._world.note(f"{node.name} cannot reach {comfy.name}")
            comfy.cut(node.name)
            self._for_a_while(self._random.choice((5.0, 60.0)), lambda: comfy.cut_from.discard(node.name))

    # The database.

    def database_away(self) -> None:
        """Let nobody reach the database."""
        self._world.note("the database is away")
        self._world.database_away = True
        self._for_a_while(self._random.choice((1.0, 15.0)), lambda: setattr(self._world, "database_away", False))

    def database_restart(self) -> None:
        """End all sessions, and let nobody reach the database for a moment."""
        self._world.note("the database restarts")
        for node in self._world.nodes:
            node.way.end_sessions()
        self._world.database_away = True
        self._for_a_while(2.0, lambda: setattr(self._world, "database_away", False))

    def cut_off(self) -> None:
        """Cut one node off from the database, which notices that sooner or later."""
        node = self._random.choice(self._world.nodes)
        way = node.way
        kind = self._random.choice(("refused", "silent"))
        self._world.note(f"{node.name} is cut off from the database: {kind}")
        setattr(way, kind, True)

        def mend() -> None:
            self._world.note(f"{node.name} is not cut off any more")
            setattr(way, kind, False)

        self._for_a_while(3.0, way.end_sessions)
        self._for_a_while(self._random.choice((1.0, 10.0, 60.0)), mend)

    def lose_answers(self) -> None:
        """Let a node not learn of some of its commits whether they were carried out."""
        way = self._random.choice(self._world.nodes).way
        way.lost_answers = 0.3
        self._for_a_while(10.0, lambda: setattr(way, "lost_answers", 0.0))

    # The files.

    def files_away(self) -> None:
        """Let one node, or all, not reach the bucket."""
        bucket, nodes = self._world.bucket, [node.name for node in self._world.nodes]
        assert bucket is not None
        names = {self._random.choice(nodes)} if self._random.random() < 0.5 else set(nodes)
        self._world.note(f"the bucket is away for {sorted(names)}")
        bucket.away_for |= names
        self._for_a_while(self._random.choice((1.0, 15.0)), lambda: bucket.away_for.difference_update(names))

    def lose_answers_of_files(self) -> None:
        """Let nodes not learn of some requests to the bucket whether they were carried out."""
        bucket = self._world.bucket
        assert bucket is not None
        bucket.lost_answers = 0.2
        self._for_a_while(10.0, lambda: setattr(bucket, "lost_answers", 0.0))
