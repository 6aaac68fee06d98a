"""What `plait explain` says of a bundle: in which forms its products were tried, and what stored weights cost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ModelNotFoundError
from .output import format_seconds, print_json, print_table

if TYPE_CHECKING:
    from ..compiler.bundle.manifest import ModelEntry
    from ..compiler.product_form import ProductForm

__all__ = ["accuracy_sentence", "explain_bundle", "form_name"]

_SHOWN_FORMS = 4


def explain_bundle(path: Path, name: str | None, *, show_all: bool, as_json: bool) -> None:
    """Prints the forms of a bundle's matrix products.

    Args:
        path: Directory that `plait bundle` made.
        name: Of the only model to tell of, or an alias; None for all.
        show_all: Print all forms that were timed, not the fastest alone.
        as_json: Print JSON alone.

    Raises:
        BundleError: if it is no bundle that runs.
        ModelNotFoundError: if it has no such model.
    """
    from ..compiler.bundle.reader import open_bundle

    models = open_bundle(path).manifest.models
    chosen = [model for model in models if name is None or name == model.name or name in model.aliases]
    if not chosen:
        raise ModelNotFoundError(f"{path} has no model {name!r}; it has {', '.join(model.name for model in models)}")
    if as_json:
        print_json([_data(model) for model in chosen])
        return
    for model in chosen:
        print(f"{model.name}: {accuracy_sentence(model)}")
        if not model.products:
            print("  its products run as they are: no form of theirs was timed\n")
            continue
        print_table(
            ["weight ", "type ", "form ", "a product", "over the chosen"],
            list(_rows(model.products, show_all=show_all)),
            title="products of at most 8 rows, timed where the bundle was made; * is what runs",
        )
        print()


def accuracy_sentence(model: ModelEntry) -> str:
    """Returns how a model's weights are stored, and what that costs if it was measured."""
    form = getattr(model.config, "stored_form", None)
    if form is None:
        return f"weights are dense, {model.dtype}"
    measured = model.accuracy
    if measured is None:
        return f"weights are stored as {form}"
    return (
        f"weights are stored as {form}; against dense ones the next token's distribution diverges by "
        f"{measured.kl_divergence:.4f} nats, and the likeliest token is the same at {measured.same_token:.1%} of "
        f"{measured.positions} positions"
    )


def _data(model: ModelEntry) -> dict[str, object]:
    return {
        "model": model.name,
        "dtype": model.dtype,
        "stored_form": getattr(model.config, "stored_form", None),
        "accuracy": None if model.accuracy is None else asdict(model.accuracy),
        "products": [asdict(product) for product in model.products],
    }


def _rows(products: Sequence[ProductForm], *, show_all: bool) -> Iterator[tuple[str, ...]]:
    for product in products:
        best = product.seconds[product.slices]
        fastest = sorted(product.seconds.items(), key=lambda form: form[1])
        for slices, seconds in fastest if show_all else fastest[:_SHOWN_FORMS]:
            yield (
                f"[{product.out_size}, {product.in_size}]",
                product.dtype,
                f"{'*' if slices == product.slices else ' '} {form_name(slices)}",
                format_seconds(seconds),
                f"{seconds / best:.2f}x",
            )


def form_name(slices: int) -> str:
    """Returns what a form of a product is called."""
    from ..compiler.product_form import KERNEL

    return {KERNEL: "plait's kernel", 1: "one piece"}.get(slices, f"{slices} slices")
