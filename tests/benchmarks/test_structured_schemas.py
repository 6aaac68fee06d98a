"""Answers of real weights to random JSON schemas: every one must be JSON that validates, whatever the question was.

pytest tests/benchmarks/test_structured_schemas.py --benchmarks -s     PLAIT_SCHEMAS=60 in the environment asks fewer
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from pathlib import Path

import jsonschema
from random_schemas import most_values, random_schema

import plait
from plait.runtime.bench.prompts import random_prompt
from plait.runtime.engine import Runtime
from plait.runtime.request import Completion, SamplingParams, Structure

NUM_SCHEMAS = int(os.environ.get("PLAIT_SCHEMAS", "500"))
NUM_CLIENTS = 8
DEPTH = 4
MOST_VALUES = 24  # about ten tokens each, so that an answer ends before it is cut off
MAX_TOKENS = 512


def bounded_schema(seed: int) -> dict:
    draw = random.Random(seed)
    schemas = (random_schema(draw, 1 + seed % DEPTH, is_rich=True) for _ in iter(int, 1))
    least = seed % DEPTH + 1  # so that not all of the deep ones are a choice between scalars
    return next(schema for schema in schemas if least <= most_values(schema) <= MOST_VALUES)


def test_every_answer_to_a_random_schema_validates(tmp_path: Path) -> None:
    chat = {"source": "smollm2-135m", "dtype": "bf16", "sequence": 1024, "batch": NUM_CLIENTS, "kv_tokens": 8192}
    spec = plait.BundleSpec.model_validate({"bundle": "structured", "target": "cpu", "models": {"chat": chat}})
    schemas = [bounded_schema(seed) for seed in range(NUM_SCHEMAS)]
    with Runtime(plait.bundle(spec, tmp_path / "structured.plait", base=tmp_path)) as runtime:
        began = time.perf_counter()
        answers = asyncio.run(_answers(runtime, schemas))
        seconds = time.perf_counter() - began
    wrong = [
        (schema, answer.text) for schema, answer in zip(schemas, answers, strict=True) if not _fits(schema, answer)
    ]
    num_tokens = sum(answer.usage.completion_tokens for answer in answers)
    print(f"\n{len(answers) - len(wrong)} of {len(answers)} validate, {num_tokens} tokens in {seconds:.0f} s")
    assert wrong == []


async def _answers(runtime: Runtime, schemas: list[dict]) -> list[Completion]:
    slots = asyncio.Semaphore(NUM_CLIENTS)

    async def answer(seed: int) -> Completion:
        question = f"{random_prompt(12, random.Random(seed))}? Answer in JSON."
        structure = Structure("json", json.dumps(schemas[seed]))
        params = SamplingParams(max_tokens=MAX_TOKENS, temperature=1.0, seed=seed, structure=structure)
        async with slots:
            return await runtime.complete_async("chat", [{"role": "user", "content": question}], params)

    return await asyncio.gather(*map(answer, range(len(schemas))))


def _fits(schema: dict, answer: Completion) -> bool:
    try:
        jsonschema.validate(json.loads(answer.text), schema)
    except (ValueError, jsonschema.ValidationError):
        return False
    return answer.finish_reason == "stop"
