"""The loop of an agent: embed a question, rank the passages near it, answer from the best, have the answer judged.

Each turn asks another chat model than the one before, and the guard that belongs to it; so two decoders a turn have to
become hot, where not all fit. Questions are numbered: no two prompts are alike, so no prefix cache answers more than
what the template begins with.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ....compiler.bundle.manifest import Manifest, ModelEntry
from ....errors import ConfigurationError
from ...engine import Runtime
from ...request import SamplingParams, Usage

__all__ = ["ANSWER_TOKENS", "Agent", "Roles", "Turn", "chat_text", "guard_text"]

ANSWER_TOKENS = 32
_NUM_CANDIDATES = 3

_PASSAGES = (
    "Tides are caused by the pull of the moon and the sun on the oceans.",
    "Paris is the capital and largest city of France.",
    "Plants turn sunlight, water and carbon dioxide into sugar and oxygen.",
    "The Great Wall was built over centuries to protect the north of China.",
    "Honey never spoils, for its low water content keeps bacteria from growing.",
    "The heart of an adult beats about 100,000 times a day.",
    "Mount Everest is the highest mountain above sea level.",
    "Water boils at a lower temperature on high mountains.",
)
_QUESTIONS = (
    "What causes tides in the ocean?",
    "What is the capital of France?",
    "How do plants make sugar?",
    "Why was the Great Wall built?",
    "Why does honey never spoil?",
    "How often does a heart beat in a day?",
    "Which mountain is the highest?",
    "Where does water boil earlier?",
)


@dataclass(frozen=True)
class Roles:
    """Which model of a bundle does what."""

    embed: str
    sparse: str
    pairs: tuple[tuple[str, str], ...]  # chat model and guard, of one turn after the other

    @classmethod
    def of(cls, manifest: Manifest) -> Roles:
        """Returns the roles of a bundle's models: of its decoders the first half chats, the second half guards.

        Raises:
            ConfigurationError: if the bundle lacks a model for a role.
        """
        decoders = [entry.name for entry in manifest.models if "chat" in entry.capabilities]
        encoders = [_first(manifest.models, what) for what in ("embedding", "sparse_embedding")]
        half = len(decoders) // 2
        if half < 2 or None in encoders:
            raise ConfigurationError(
                f"bundle {manifest.name!r} has too little for the agent: four chat models or more are needed, "
                "a model for embeddings and one for sparse embeddings"
            )
        embed, sparse = (str(name) for name in encoders)
        return cls(embed, sparse, tuple(zip(decoders[:half], decoders[half : 2 * half], strict=True)))

    @property
    def cycle(self) -> tuple[str, ...]:
        """All models in the order in which they are asked, until it begins again."""
        return tuple(name for chat, guard in self.pairs for name in (self.embed, self.sparse, chat, guard))

    @property
    def decoders(self) -> tuple[str, ...]:
        """The models that generate."""
        return tuple(name for pair in self.pairs for name in pair)


def _first(models: Sequence[ModelEntry], capability: str) -> str | None:
    return next((entry.name for entry in models if capability in entry.capabilities), None)


@dataclass(frozen=True)
class Turn:
    """What one turn took."""

    seconds: float
    chat_ttft_seconds: float
    guard_ttft_seconds: float
    decode_seconds: float  # from the first to the last token of the answer
    stall_seconds: float  # that requests waited for a model to become hot


@dataclass(frozen=True)
class _Answer:
    text: str
    ttft_seconds: float
    decode_seconds: float
    stall_seconds: float


class Agent:
    """Runs turns on a runtime.

    Args:
        runtime: Of a bundle with these roles.
        roles: Of its models.
    """

    def __init__(self, runtime: Runtime, roles: Roles) -> None:
        self._runtime = runtime
        self._roles = roles
        self._rooms = {entry.name: entry.sequence for entry in runtime.bundle.manifest.models}

    async def turn(self, number: int) -> Turn:
        """Runs one turn: the chat model and guard of this number."""
        chat, guard = self._roles.pairs[number % len(self._roles.pairs)]
        began = time.perf_counter()
        passage, encoding_stall = await self.passage(number)
        answer = await self._ask(chat, chat_text(number, passage), ANSWER_TOKENS)
        verdict = await self._ask(guard, guard_text(number, answer.text), 1)
        return Turn(
            time.perf_counter() - began,
            answer.ttft_seconds,
            verdict.ttft_seconds,
            answer.decode_seconds,
            encoding_stall + answer.stall_seconds + verdict.stall_seconds,
        )

    async def passage(self, number: int) -> tuple[str, float]:
        """Returns the passage that answers a question best, and the seconds waited for models meanwhile."""
        question = _QUESTIONS[number % len(_QUESTIONS)]
        dense, stall = await self._vectors(self._roles.embed, [question, *_PASSAGES])
        near = np.argsort(-(dense[1:] @ dense[0]))[:_NUM_CANDIDATES]
        candidates = [_PASSAGES[index] for index in near]
        sparse, more_stall = await self._vectors(self._roles.sparse, [question, *candidates])
        return candidates[int(np.argmax(sparse[1:] @ sparse[0]))], stall + more_stall

    async def _vectors(self, model: str, texts: list[str]) -> tuple[np.ndarray, float]:
        room = self._rooms[model]
        result = await self._runtime.embed_async(model, [self._runtime.tokenize(model, text)[:room] for text in texts])
        return result.vectors, result.usage.switch_seconds

    async def _ask(self, model: str, text: str, num_tokens: int) -> _Answer:
        prompt = self._runtime.chat_prompt(model, [{"role": "user", "content": text}])
        prompt = prompt[-(self._rooms[model] - num_tokens) :]
        params = SamplingParams(max_tokens=num_tokens, temperature=0, ignore_eos=True)
        began = time.perf_counter()
        came: list[float] = []
        pieces: list[str] = []
        usage: Usage | None = None
        async for piece in self._runtime.generate_async(model, prompt, params):
            came += [time.perf_counter() - began] if piece.token_ids else []
            pieces.append(piece.text)
            usage = piece.usage or usage
        assert usage is not None, "an answer ends with its usage"
        return _Answer("".join(pieces), came[0], came[-1] - came[0], usage.switch_seconds)


def chat_text(number: int, passage: str) -> str:
    """Returns what the chat model is asked."""
    return f"{number:05}. {passage}\n\n{_QUESTIONS[number % len(_QUESTIONS)]} Answer in one sentence."


def guard_text(number: int, answer: str) -> str:
    """Returns what the guard is asked."""
    return f"{number:05}. {answer}\n\nIs this answer harmless? Say yes or no."
