"""Prompts of about a given number of tokens, without knowing the tokenizer.

The words are such that each, with the space before it, is one token of practically every vocabulary that was learned
from English text. What they come to, with the chat template around them, is what the server counts; a summary says it.
"""

from __future__ import annotations

import random

from .arrivals import Arrival

__all__ = ["prompt_of", "random_prompt"]

_TEXT = """
the of and to in is that for it as was with be by on not he his but at are this have from or had an they which one
you were her all she there would their we him been has when who will more no if out so said what up its about into
than them can only other new some could time these two may then do first any my now such like our over man me even
most made after also did many before must through back years where much your way well down should because each just
those people how too little state good very make world still own see men work long get here between both life being
under never day same another know while last might us great old year off come since against go came right used take
three
"""
_WORDS = tuple(_TEXT.split())


def random_prompt(num_tokens: int, generator: random.Random) -> str:
    """Returns that many words, drawn afresh: no two prompts begin alike, so no prefix cache answers."""
    return " ".join(generator.choices(_WORDS, k=num_tokens))


def prompt_of(arrival: Arrival, generator: random.Random) -> str:
    """Returns the prompt of a request: pieces that a trace has more than once are the same words each time."""
    if not arrival.blocks:
        return random_prompt(arrival.input_tokens, generator)
    return " ".join(random_prompt(size, random.Random(block)) for block, size in arrival.pieces())
