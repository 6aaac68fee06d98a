"""Ask two models at once under a budget that holds one: requests wait for the switch, none is refused.

plait bundle examples/agent.yaml -o agent.plait
python examples/03_more_models_than_memory.py agent.plait 350MiB
"""

import asyncio
import sys

import plait


async def main(path: str, hbm: str | None) -> None:
    """Sends eight requests for two models at the same time."""
    with plait.Runtime(path, hbm=hbm) as runtime:
        few = plait.SamplingParams(max_tokens=8, temperature=0)
        answers = [runtime.complete_async("chat", f"The number {index} is", few) for index in range(4)]
        vectors = [runtime.embed_async("embed", [f"passage {index}"]) for index in range(4)]
        for completion in await asyncio.gather(*answers):
            print(f"{completion.usage.total_seconds * 1000:6.0f} ms  chat   {completion.text!r}")
        for result in await asyncio.gather(*vectors):
            print(f"{result.usage.total_seconds * 1000:6.0f} ms  embed  {result.vectors.shape}")
        for record in runtime.transfers():
            rate = record.num_bytes / record.seconds / 1e9
            way = f"{record.source} -> {record.destination}"
            print(f"{record.model}: {way} in {record.seconds * 1000:.0f} ms, {rate:.1f} GB/s")


asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "agent.plait", sys.argv[2] if len(sys.argv) > 2 else None))
