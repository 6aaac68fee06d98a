"""Load a bundle and ask its models: five lines of embedding.

plait bundle examples/agent.yaml -o agent.plait
python examples/01_ask_a_bundle.py agent.plait
"""

import sys

import plait

bundle = plait.load(sys.argv[1] if len(sys.argv) > 1 else "agent.plait")
with plait.Runtime(bundle) as runtime:
    for piece in runtime.stream("chat", [{"role": "user", "content": "What is the capital of France?"}]):
        print(piece, end="", flush=True)
    vectors = runtime.embed("embed", ["a passage", "another one"])
    print(f"\n{vectors.shape} vectors, cosine {vectors[0] @ vectors[1]:.3f}")
