"""What clients get, as OpenAI's API reference has it, with SambaNova's and our own figures in `usage`."""

from .chat import ChatChoice, ChatChunk, ChatCompletion, ChatDelta, ChatMessage, ChatToolCallDelta
from .completion import Completion, CompletionChoice, CompletionChunk, CompletionChunkChoice
from .encoding import (
    Classification,
    ClassificationList,
    EmbeddingItem,
    EmbeddingList,
    EmbeddingUsage,
    Ranked,
    RankedDocument,
    Ranking,
    Score,
    ScoreList,
)
from .envelope import new_id, now, system_fingerprint
from .logprobs import ChatLogprobs, CompletionLogprobs
from .models import ListedItem, ModelBytes, ModelItem, ModelList, ModelMove, RouteItem
from .usage import Usage

__all__ = [
    "ChatChoice",
    "ChatChunk",
    "ChatCompletion",
    "ChatDelta",
    "ChatLogprobs",
    "ChatMessage",
    "ChatToolCallDelta",
    "Classification",
    "ClassificationList",
    "Completion",
    "CompletionChoice",
    "CompletionChunk",
    "CompletionChunkChoice",
    "CompletionLogprobs",
    "EmbeddingItem",
    "EmbeddingList",
    "EmbeddingUsage",
    "ListedItem",
    "ModelBytes",
    "ModelItem",
    "ModelList",
    "ModelMove",
    "Ranked",
    "RankedDocument",
    "Ranking",
    "RouteItem",
    "Score",
    "ScoreList",
    "Usage",
    "new_id",
    "now",
    "system_fingerprint",
]
