"""Ask a running server with the `openai` client, streamed; and see which models are hot.

plait serve agent.plait --port 8000
python examples/04_openai_client.py http://127.0.0.1:8000
"""

import sys

import openai

url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"
client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")

stream = client.chat.completions.create(
    model="chat",
    messages=[{"role": "user", "content": "What is the capital of France?"}],
    max_tokens=24,
    temperature=0,
    stream=True,
)
for chunk in stream:
    print(chunk.choices[0].delta.content or "", end="", flush=True)
print()

vectors = client.embeddings.create(model="embed", input=["a passage", "another one"]).data
print(len(vectors), "vectors of", len(vectors[0].embedding), "numbers")

for model in client.models.list():
    extra = model.model_extra or {}
    print(f"{model.id:<8} {extra['residency']:<5} {extra['bytes']['weights']:>12,} bytes of weights")
