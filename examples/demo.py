"""What `make demo` runs: three real models on one endpoint, under a budget that can't hold them all at once.

Pulls the models, bundles them (once), serves the bundle on loopback and lets an agent ask over HTTP with the `openai`
client: embed passages and a question, pick passages by cosine, rank them by SPLADE, answer from the best, streamed.
Prints what every request cost, every switch, and the bytes of each tier: predicted, measured and allowed.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import openai
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

import plait
from plait.runtime.engine import Runtime
from plait.runtime.server.serve import serving

SPEC = Path(__file__).parent / "agent.yaml"
BUNDLE = Path(__file__).parent.parent / ".cache" / "demo" / "agent.plait"

PASSAGES = [
    "Tides are caused by the gravitational pull of the moon and the sun on the oceans of the rotating Earth.",
    "Paris is the capital and largest city of France. It lies on the river Seine.",
    "Photosynthesis is the process by which plants turn sunlight, water and carbon dioxide into sugar and oxygen.",
    "The Great Wall of China was built over many centuries to protect the northern borders of Chinese states.",
    "Honey never spoils: its low water content and high acidity keep bacteria from growing in it.",
    "The heart pumps blood through the body; an adult's heart beats about 100,000 times a day.",
]
QUESTIONS = ["What causes tides in the ocean?", "Why does honey never spoil?", "How often does a heart beat in a day?"]

console = Console()


def main() -> None:
    """Runs the demo; the whole of it, or until Ctrl-C."""
    began = time.perf_counter()
    bundle = build()
    with progress_bar() as bar:
        task = bar.add_task("load programs")
        runtime = Runtime(bundle, progress=lambda done, total: bar.update(task, completed=done, total=total))
    with runtime, serving(runtime) as url:
        console.print(f"serving {bundle.manifest.name} at {url}/v1 with {runtime.target.name}: 350 MiB of hbm")
        agent = Agent(openai.OpenAI(base_url=f"{url}/v1", api_key="none"))
        for question in QUESTIONS:
            agent.ask(question)
        console.print(agent.table, transfers_table(runtime), tiers_table(runtime))
        rates = ", ".join(f"{rate:.1f}" for rate in agent.tokens_per_s)
        console.print(f"decode: {rates} tokens/s after the first token; {time.perf_counter() - began:.1f} s in all")


def build() -> plait.Bundle:
    """Returns the bundle, which is built if there is none yet or its file or plait have changed."""
    if (BUNDLE / "manifest.json").exists() and (BUNDLE / "manifest.json").stat().st_mtime > SPEC.stat().st_mtime:
        try:
            bundle = plait.load(BUNDLE)
            if bundle.manifest.versions["plait"] == plait.__version__:
                return bundle
        except plait.PlaitError as error:
            console.print(f"building the bundle again: {error}")
    BUNDLE.parent.mkdir(parents=True, exist_ok=True)
    with progress_bar() as bar:
        tasks: dict[tuple[str, str], int] = {}

        def report(model: str, stage: str, done: int, total: int) -> None:
            key = (model, stage)
            tasks[key] = tasks[key] if key in tasks else bar.add_task(f"{model}: {stage}")
            bar.update(tasks[key], completed=done, total=total)  # type: ignore[arg-type]

        return plait.bundle(plait.read_spec(SPEC), BUNDLE, base=SPEC.parent, progress=report)


def progress_bar() -> Progress:
    """Returns a progress display."""
    columns = (TextColumn("{task.description:<18}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console)


class Agent:
    """Answers questions from passages with three models behind one endpoint."""

    def __init__(self, client: openai.OpenAI) -> None:
        self.client = client
        self.tokens_per_s: list[float] = []
        self.table = Table("request", "model", "ms", "of it, switch", "hot afterwards", title="requests")

    def ask(self, question: str) -> None:
        """Finds the passage that answers a question, and answers from it."""
        near = self.vectors("embed", [question, *PASSAGES])
        order = np.argsort(-(near[1:] @ near[0]))[:3]
        candidates = [PASSAGES[index] for index in order]
        sparse = self.vectors("sparse", [question, *candidates])
        passage = candidates[int(np.argmax(sparse[1:] @ sparse[0]))]
        console.print(f"\n[bold]{question}[/bold]  [dim]({passage})[/dim]")
        self.answer(f"{passage}\n\n{question} Answer in one sentence.")

    def vectors(self, model: str, texts: list[str]) -> np.ndarray:
        """Returns one vector for each text, [texts, size]."""
        began = time.perf_counter()
        response = self.client.embeddings.create(model=model, input=texts)
        self.log(f"{len(texts)} texts", model, began, response.usage.model_extra or {})
        return np.array([item.embedding for item in response.data])

    def answer(self, prompt: str) -> None:
        """Streams the chat model's answer to the terminal."""
        began = time.perf_counter()
        usage: dict[str, object] = {}
        for chunk in self.client.chat.completions.create(
            model="chat",
            messages=[{"role": "user", "content": prompt}],
            temperature=0,
            max_tokens=48,
            stream=True,
            stream_options={"include_usage": True},
        ):
            console.print("".join(choice.delta.content or "" for choice in chunk.choices), end="", highlight=False)
            if chunk.usage is not None:
                usage = chunk.usage.model_extra or {}
        console.print()
        self.log("answer", "chat", began, usage)
        self.tokens_per_s.append(float(str(usage["completion_tokens_after_first_per_sec"])))

    def log(self, request: str, model: str, began: float, usage: dict[str, object]) -> None:
        """Adds a request to the table, with the models that are hot after it."""
        milliseconds = (time.perf_counter() - began) * 1000
        models = self.client.models.list().data
        hot = [item.id for item in models if (item.model_extra or {})["residency"] == "hot"]
        switch = float(str(usage["switch_ms"]))
        self.table.add_row(request, model, f"{milliseconds:.0f}", f"{switch:.0f}", ", ".join(hot))


def transfers_table(runtime: Runtime) -> Table:
    """Returns every transfer of weights, with its rate."""
    table = Table("model", "from → to", "MiB", "ms", "GB/s", "unpaced GB/s", title="transfers")
    for record in runtime.transfers():
        table.add_row(
            record.model,
            f"{record.source} → {record.destination}",
            f"{record.num_bytes / 2**20:.1f}",
            f"{record.seconds * 1000:.0f}",
            f"{record.num_bytes / record.seconds / 1e9:.2f}",
            f"{record.num_bytes / record.copy_seconds / 1e9:.2f}",
        )
    num_switches = sum(record.destination == "hbm" for record in runtime.transfers())
    table.caption = f"{num_switches} switches (to hbm); the link from ddr to hbm is paced to {link_rate(runtime)}"
    return table


def link_rate(runtime: Runtime) -> str:
    """Returns the pace of the link to hbm."""
    return f"{runtime.target.link('ddr', 'hbm').bandwidth_bytes_per_s / 1e9:.1f} GB/s"


def tiers_table(runtime: Runtime) -> Table:
    """Returns what each tier held at its peak, by the plan and by JAX, against what it may hold."""
    table = Table("tier", "budget MiB", "charged", "predicted in use", "measured in use", "difference", title="peaks")
    for use in runtime.tier_uses():
        sizes = (use.budget_bytes, use.peak_charged_bytes, use.predicted_bytes, use.measured_bytes)
        difference = use.predicted_bytes / use.measured_bytes - 1
        table.add_row(use.tier, *(f"{size / 2**20:.1f}" for size in sizes), f"{difference:+.2%}")
    return table


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except plait.PlaitError as error:
        raise SystemExit(f"demo: {error}") from None
