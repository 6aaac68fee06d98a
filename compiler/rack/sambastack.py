"""Bundles of SambaStack, read into our own: kinds `ModelBundle`, and the older `BundleTemplate` with `Bundle`.

Of documents with `apiVersion: sambanova.ai/...` is read:

- ModelBundle: `metadata.name`; of each entry of `spec.modelConfigs` the `model` (`NAME[:ARCH][:VERSION]`), the
  `batchingConfig` (`{8k: {batch_sizes: [2]}}`: each length with each batch size is a configuration), and of
  `modelSettings` `swappable` (false pins to hbm) and `routable`; `spec.specDecodingPairs` of `draft` and `target`.
- BundleTemplate: `spec.models.NAME.experts.LENGTH.configs`, each with `batch_size` or a `pef` whose name says `bsN`,
  and `spec_decoding.draft_model` of a config, of `default_config_values` or of `default_expert_values`.
- Bundle: `spec.models.NAME.template`: several models of one template are models of their own.

All else (profiles, secrets, owners, checkpoints) says nothing of shapes and is passed over; so are other kinds.
Models are found in the zoo by name: letters and digits alone count, without vendor, version and tuning.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ...errors import ConfigurationError
from ...models import registry
from ...models.zoo import catalog
from ..bundle.spec import BundleSpec, to_spec

__all__ = ["is_sambastack", "read_sambastack"]

_GROUP = "sambanova.ai/"
_PASSED_OVER = ("meta", "all", "instruct", "chat", "it", "hf", "base", "preview")  # words of a name
_RELEASE = re.compile(r"-(v0-[0-9]+|v[0-9]+|[0-9]{4})$")
_LENGTH = re.compile(r"([0-9]+)(k?)", re.IGNORECASE)
_PEF_BATCH = re.compile(r"(?<![a-z0-9])bs([0-9]+)(?![0-9])", re.IGNORECASE)


@dataclass(frozen=True)
class _Model:
    """A model of a SambaStack bundle."""

    name: str
    reference: str  # that names what it is
    shapes: tuple[tuple[int, int], ...]  # (context length, batch size)
    is_pinned: bool = False
    is_routable: bool = True


def is_sambastack(documents: Sequence[object]) -> bool:
    """Whether some YAML document is a resource of SambaStack."""
    return any(isinstance(each, dict) and str(each.get("apiVersion", "")).startswith(_GROUP) for each in documents)


def read_sambastack(documents: Sequence[object], path: Path, target: str | None) -> BundleSpec:
    """Returns the bundle that some documents describe.

    Args:
        documents: Of one YAML file.
        path: Of the file, for messages.
        target: Of the bundle, for SambaStack's resources don't say it.

    Raises:
        ConfigurationError: if they are no bundle, a field that is used is malformed, or a model is unknown.
    """
    if target is None:
        raise ConfigurationError(
            f"{path} is a bundle of SambaStack, which names no target; give one, e.g. --target sn40l-16"
        )
    by_kind: dict[str, list[_Field]] = {}
    for number, document in enumerate(documents):
        root = _Field(document, f"{path}, document {number + 1}:" if len(documents) > 1 else f"{path}:")
        if isinstance(document, dict):
            by_kind.setdefault(str(document.get("kind")), []).append(root)
    if found := by_kind.get("ModelBundle"):
        name, models, pairs = _model_bundle(found[0])
    elif found := by_kind.get("BundleTemplate"):
        name, models, pairs = _template(found[0], by_kind.get("Bundle", []))
    else:
        kinds = ", ".join(by_kind) or "none"
        raise ConfigurationError(f"{path} has no ModelBundle and no BundleTemplate; its kinds: {kinds}")
    return to_spec(_spec(name, models, pairs, target), path)


@dataclass(frozen=True)
class _Field:
    """A value of a document, and where it is."""

    value: object
    where: str

    def get(self, key: str) -> _Field | None:
        """Returns a field of a mapping; None if it is not there."""
        value = self.mapping.get(key)
        return (
            None
            if value is None
            else _Field(value, f"{self.where}: {key}" if ": " not in self.where else f"{self.where}.{key}")
        )

    def need(self, key: str) -> _Field:
        """Returns a field that has to be there."""
        found = self.get(key)
        if found is None:
            raise ConfigurationError(f"{self.where} has no `{key}`")
        return found

    @property
    def mapping(self) -> Mapping[str, object]:
        """The value, if it is a mapping."""
        if not isinstance(self.value, dict):
            raise ConfigurationError(f"{self.where} is no mapping (found {self.value!r})")
        return {str(key): value for key, value in self.value.items()}

    @property
    def text(self) -> str:
        """The value, if it is text."""
        if not isinstance(self.value, str) or not self.value.strip():
            raise ConfigurationError(f"{self.where} is no text (found {self.value!r})")
        return self.value.strip()

    @property
    def truth(self) -> bool:
        """The value, if it is true or false."""
        if not isinstance(self.value, bool):
            raise ConfigurationError(f"{self.where} is neither true nor false (found {self.value!r})")
        return self.value

    def fields(self) -> Iterator[tuple[str, _Field]]:
        """Yields the fields of a mapping."""
        for key in self.mapping:
            if (found := self.get(key)) is not None:
                yield key, found

    def items(self) -> Iterator[_Field]:
        """Yields the elements of a list."""
        if not isinstance(self.value, list):
            raise ConfigurationError(f"{self.where} is no list (found {self.value!r})")
        for number, value in enumerate(self.value):
            yield _Field(value, f"{self.where}[{number}]")


_Read = tuple[str, list[_Model], list[tuple[str, str]]]  # name, models, pairs of (draft, target) by reference


def _model_bundle(root: _Field) -> _Read:
    spec = root.need("spec")
    models: dict[str, _Model] = {}
    for entry in spec.need("modelConfigs").items():
        model = _configured(entry)
        known = models.get(model.name)
        models[model.name] = model if known is None else _joined(known, model)
    listed = spec.get("specDecodingPairs")
    pairs = [_pair(each) for each in listed.items()] if listed else []
    return root.need("metadata").need("name").text, list(models.values()), pairs


def _pair(entry: _Field) -> tuple[str, str]:
    return _base(entry.need("draft").text), _base(entry.need("target").text)


def _configured(entry: _Field) -> _Model:
    reference = _base(entry.need("model").text)
    shapes = [
        (_length(length, tier.where), batch)
        for length, tier in entry.need("batchingConfig").fields()
        for batch in _batches(tier.need("batch_sizes"))
    ]
    if not shapes:
        raise ConfigurationError(f"{entry.where} has no context length in its `batchingConfig`")
    settings = entry.get("modelSettings")
    swappable = settings.get("swappable") if settings else None
    routable = settings.get("routable") if settings else None
    return _Model(
        name=_fit(reference),
        reference=reference,
        shapes=tuple(dict.fromkeys(shapes)),
        is_pinned=swappable is not None and not swappable.truth,
        is_routable=routable is None or routable.truth,
    )


def _joined(one: _Model, other: _Model) -> _Model:
    """Returns two entries for the same model, which differ in profile, as one."""
    shapes = tuple(dict.fromkeys((*one.shapes, *other.shapes)))
    pinned, routable = one.is_pinned or other.is_pinned, one.is_routable or other.is_routable
    return replace(one, shapes=shapes, is_pinned=pinned, is_routable=routable)


def _template(root: _Field, bundles: Sequence[_Field]) -> _Read:
    templates: dict[str, _Model] = {}
    drafts: dict[str, str] = {}  # by target
    for name, entry in root.need("spec").need("models").fields():
        shapes: list[tuple[int, int]] = []
        for length, expert in entry.need("experts").fields():
            for config in expert.need("configs").items():
                shapes.append((_length(length, expert.where), _config_batch(config)))
                for place in (config, expert.get("default_config_values"), entry.get("default_expert_values")):
                    decoding = place.get("spec_decoding") if place else None
                    if decoding is not None:
                        drafts.setdefault(name, decoding.need("draft_model").text)
        if not shapes:
            raise ConfigurationError(f"{entry.where} has no configuration")
        templates[name] = _Model(_fit(name), name, tuple(dict.fromkeys(shapes)))
    pairs = [(draft, target) for target, draft in drafts.items()]
    if not bundles:
        return root.need("metadata").need("name").text, list(templates.values()), pairs
    bundle = bundles[0]
    return bundle.need("metadata").need("name").text, list(_bound(bundle, templates)), pairs


def _bound(bundle: _Field, templates: Mapping[str, _Model]) -> Iterator[_Model]:
    """Yields the models of a Bundle, each with the shapes of its template."""
    for name, entry in bundle.need("spec").need("models").fields():
        template = entry.get("template")
        wanted = name if template is None else template.text
        if wanted not in templates:
            raise ConfigurationError(
                f"{entry.where}: template {wanted!r} is not there; templates: {', '.join(templates)}"
            )
        yield replace(templates[wanted], name=_fit(name))


def _config_batch(config: _Field) -> int:
    """Returns the batch size of a config of a template."""
    if (said := config.get("batch_size")) is not None:
        return _batches(_Field([said.value], said.where))[0]
    match = _PEF_BATCH.search(config.need("pef").text.replace("_", "-"))
    if match is None:
        raise ConfigurationError(
            f"{config.where} has no `batch_size`, and its `pef` {config.need('pef').text!r} says no bsN"
        )
    return int(match[1])


def _batches(sizes: _Field) -> list[int]:
    batches = [each.value for each in sizes.items()]
    for batch in batches:
        if not isinstance(batch, int) or isinstance(batch, bool) or batch < 1:
            raise ConfigurationError(f"{sizes.where}: {batch!r} is no batch size")
    if not batches:
        raise ConfigurationError(f"{sizes.where} is empty")
    return [int(str(batch)) for batch in batches]


def _length(text: str, where: str) -> int:
    """Returns the tokens of a context length such as `8k` or `4096`."""
    match = _LENGTH.fullmatch(text.strip())
    if match is None:
        raise ConfigurationError(f"{where}: {text!r} is no context length; write 8k or 4096")
    return int(match[1]) * (1024 if match[2] else 1)


def _base(reference: str) -> str:
    """Returns a reference without architecture and version."""
    return reference.split(":")[0]


def _fit(name: str) -> str:
    """Returns a name as bundles have them."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._")[:64]


def _spec(name: str, models: Sequence[_Model], pairs: Sequence[tuple[str, str]], target: str) -> dict[str, object]:
    """Returns the bundle file that says the same."""
    of_reference: dict[str, list[str]] = {}
    for model in models:
        of_reference.setdefault(model.reference, []).append(model.name)
    return {
        "bundle": _fit(name),
        "target": target,
        "models": {
            model.name: {
                "source": _source(model.reference),
                "configurations": [{"sequence": length, "batch": batch} for length, batch in model.shapes],
                "pin": "hbm" if model.is_pinned else None,
                "routable": model.is_routable,
            }
            for model in models
        },
        "speculative": [
            {"draft": draft, "target": wanted}
            for one, other in pairs
            for draft in _named(one, of_reference)[:1]
            for wanted in _named(other, of_reference)
        ],
    }


def _named(reference: str, of_reference: Mapping[str, list[str]]) -> list[str]:
    if reference not in of_reference:
        raise ConfigurationError(
            f"a pair for speculative decoding names {reference!r}, the bundle's models are {', '.join(of_reference)}"
        )
    return of_reference[reference]


def _source(reference: str) -> str:
    """Returns the named model or entry of the zoo that a name of SambaStack means.

    Raises:
        ConfigurationError: if there is none.
    """
    known: dict[str, str] = {}
    for name in (*catalog.names(), *registry.NAMED_MODELS):
        known.setdefault(_plain(name), name)
    for name in catalog.names():
        known.setdefault(_plain(catalog.entry(name).source.rpartition("/")[2]), name)
    wanted = _plain(reference)
    found = known.get(wanted, known.get(_RELEASE.sub("", wanted)))
    if found is None:
        raise ConfigurationError(
            f"model {reference!r} is not in the zoo; known are {', '.join(sorted(set(known.values())))}. "
            "Any config.json can be the `source` of a model in a bundle file"
        )
    return found


def _plain(name: str) -> str:
    """Returns what counts of a model's name: `Meta-Llama-3.1-70B-Instruct` is `llama3-1-70b`."""
    text = re.sub(r"(?<=[0-9])p(?=[0-9])", "-", name.lower())  # 3p1
    words = [word for word in re.split(r"[^a-z0-9]+", text) if word and word not in _PASSED_OVER]
    return re.sub(r"(?<=[a-z])-(?=[0-9])", "", "-".join(words))  # qwen-2-5 is qwen2-5
