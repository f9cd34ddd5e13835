"""Questions about single jobs that come while others are answered: all of them in one statement."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Generic, TypeVar

T = TypeVar("T")


class Together(Generic[T]):
    """Asks one question about several jobs at a time, of which each is answered by a read that begins afterwards."""

    def __init__(self, ask: Callable[[Sequence[str]], Awaitable[Mapping[str, T]]]) -> None:
        self._ask = ask
        self._waiting: dict[str, asyncio.Future[T | None]] = {}
        self._task: asyncio.Task[None] | None = None

    async def get(self, prompt_id: str) -> T | None:
        """Return the answer about a job; None where there is none. Raises what the read raised."""
        answer = self._waiting.get(prompt_id)
        if answer is None:
            answer = self._waiting[prompt_id] = asyncio.get_running_loop().create_future()
        if self._task is None:
            self._task = asyncio.create_task(self._answer_all(), name="questions")
        return await asyncio.shield(answer)

    async def _answer_all(self) -> None:
        try:
            while self._waiting:
                asked, self._waiting = self._waiting, {}
                await self._answer(asked)
        finally:
            self._task = None

    async def _answer(self, asked: Mapping[str, asyncio.Future[T | None]]) -> None:
        try:
            answers = await self._ask(list(asked))
        except Exception as error:  # noqa: BLE001  # the top of the task: nobody may wait for ever
            for future in asked.values():
                future.set_exception(error)
                future.exception()  # whoever asked may be gone
            return
        for prompt_id, future in asked.items():
            future.set_result(answers.get(prompt_id))
