"""What a running server says of itself: one reading of its `/v1/models` and `/metrics`."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..errors import ConfigurationError

if TYPE_CHECKING:
    import httpx

__all__ = ["ModelReading", "Reading", "SwitchReading", "TierReading", "connect_to", "read_server"]

_TIMEOUT_SECONDS = 10
_TIERS = ("hbm", "ddr")
_Values = Mapping[tuple[str, str], float]  # by name and the value of the first label


@dataclass(frozen=True)
class ModelReading:
    """A model as it is now."""

    name: str
    residency: str
    health: str
    tier_bytes: dict[str, int]  # in each tier that it is in
    running: int
    waiting: int
    generated_tokens: int  # since the server started
    tokens_per_s: float | None = None  # since an earlier reading


@dataclass(frozen=True)
class TierReading:
    """A memory tier."""

    tier: str
    used_bytes: int
    peak_bytes: int
    budget_bytes: int


@dataclass(frozen=True)
class SwitchReading:
    """The last move of a model."""

    model: str
    source: str
    destination: str
    bytes: int
    seconds: float
    ended_at: float  # seconds since the epoch


@dataclass(frozen=True)
class Reading:
    """A server as it is now."""

    url: str
    at_seconds: float  # since the epoch
    models: tuple[ModelReading, ...]
    tiers: tuple[TierReading, ...]
    switches: tuple[SwitchReading, ...]  # of each model the last one, the newest first
    num_switches: int  # to hbm, since the server started

    def since(self, before: Reading) -> Reading:
        """Returns this reading with the rates since an earlier one."""
        seconds = max(self.at_seconds - before.at_seconds, 1e-9)
        known = {model.name: model.generated_tokens for model in before.models}

        def with_rate(model: ModelReading) -> ModelReading:
            fresh = max(0, model.generated_tokens - known.get(model.name, model.generated_tokens))  # 0: it restarted
            return replace(model, tokens_per_s=fresh / seconds)

        return replace(self, models=tuple(map(with_rate, self.models)))


def connect_to(url: str, api_key: str | None) -> httpx.Client:
    """Returns a client of a server, by its URL with or without `/v1`."""
    import httpx

    try:
        parsed = httpx.URL(url if "://" in url else f"http://{url}")
    except httpx.InvalidURL as error:
        raise ConfigurationError(f"{url!r} is no URL: {error}") from None
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ConfigurationError(f"{url!r} is no URL of a server; write for example http://127.0.0.1:8000")
    base = str(parsed).rstrip("/").removesuffix("/v1")
    headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
    return httpx.Client(base_url=base, headers=headers, timeout=_TIMEOUT_SECONDS, trust_env=False)


def read_server(http: httpx.Client) -> Reading:
    """Returns what a server says now.

    Raises:
        ConfigurationError: if it does not answer, wants a key, or is no server of plait's.
    """
    listed, counted = _get(http, "/v1/models"), _get(http, "/metrics")
    try:
        items, values = listed.json(), _values(counted.text)
        models = [item for item in items["data"] if "tiers" in item]
        if not models:
            raise KeyError("tiers")
        return Reading(
            url=str(http.base_url).rstrip("/"),
            at_seconds=time.time(),
            models=tuple(_model(item, values) for item in models),
            tiers=tuple(_tiers(values)),
            switches=_switches(models),
            num_switches=int(sum(n for (name, _), n in values.items() if name == "plait_switches_total")),
        )
    except (KeyError, TypeError, ValueError):
        raise ConfigurationError(
            f"{http.base_url} is no server of plait's: it does not say where its models are"
        ) from None


def _get(http: httpx.Client, path: str) -> httpx.Response:
    import httpx

    try:
        response = http.get(path)
        response.raise_for_status()
    except httpx.HTTPStatusError as error:
        remedy = "; give its --api-key" if error.response.status_code == 401 else ""
        raise ConfigurationError(f"{error.request.url} answers {error.response.status_code}{remedy}") from None
    except httpx.HTTPError as error:
        raise ConfigurationError(f"nobody answers at {http.base_url}: {error or type(error).__name__}") from None
    return response


def _values(text: str) -> dict[tuple[str, str], float]:
    from prometheus_client.parser import text_string_to_metric_families

    values: dict[tuple[str, str], float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == "plait_switches_total" and sample.labels.get("destination") != "hbm":
                continue
            label = sample.labels.get("model_name") or sample.labels.get("tier") or ""
            values[sample.name, label] = values.get((sample.name, label), 0.0) + sample.value
    return values


def _model(item: Mapping[str, object], values: _Values) -> ModelReading:
    name = str(item["id"])
    return ModelReading(
        name=name,
        residency=str(item["residency"]),
        health=str(item["health"]),
        tier_bytes=dict(item["tiers"]),  # type: ignore[call-overload]
        running=int(values.get(("vllm:num_requests_running", name), 0)),
        waiting=int(values.get(("vllm:num_requests_waiting", name), 0)),
        generated_tokens=int(values.get(("vllm:generation_tokens_total", name), 0)),
    )


def _tiers(values: _Values) -> Iterator[TierReading]:
    for tier in _TIERS:
        if ("plait_tier_budget_bytes", tier) in values:
            used, peak, budget = (int(values[f"plait_tier_{what}_bytes", tier]) for what in ("used", "peak", "budget"))
            yield TierReading(tier, used, peak, budget)


def _switches(models: list[dict[str, object]]) -> tuple[SwitchReading, ...]:
    moves = [(str(item["id"]), item["last_move"]) for item in models if item["last_move"]]
    found = [SwitchReading(model=name, **move) for name, move in moves]  # type: ignore[arg-type]
    return tuple(sorted(found, key=lambda switch: -switch.ended_at))
