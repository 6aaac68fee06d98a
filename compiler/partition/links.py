"""Where reshards can be: which node of a sharding problem brings whose value to which layout.

A link is what `formulate` makes an edge of, if it ever costs anything.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ..mesh import Layout
from ..target import Network
from .formulate import Formulation, Node
from .reshard import matrix
from .skeleton import Made

__all__ = ["Link", "links", "sends"]


@dataclass(frozen=True)
class Link:
    """A kind of value on its way from the node that holds it to one that wants it."""

    made: Made
    source: int  # node
    target: int  # node
    operand: int | None = None  # of the target, if that is an operation


def links(formulation: Formulation, made: Made) -> Iterator[Link]:
    """Yields all links of a kind of value: to its shared layout, then to its readers, then to outputs."""
    skeleton = formulation.skeleton
    index = {(node.kind, node.made): i for i, node in enumerate(formulation.nodes)}
    holder = index["input", made] if made.is_input else index["operation", Made(made.group, 0)]
    if ("shared", made) in index:
        yield Link(made, holder, index["shared", made])
        holder = index["shared", made]
    for read in skeleton.reads:
        if read.made == made:
            yield Link(made, holder, index["operation", Made(read.group, 0)], read.operand)
    if ("output", made) in index:
        yield Link(made, holder, index["output", made])
    for result, written in skeleton.tied:
        if result == made:
            yield Link(made, holder, index["input", written])


def sends(formulation: Formulation, link: Link, network: Network) -> np.ndarray:
    """Returns for which pairs of strategies anything is sent, [strategies of the source, strategies of the target]."""
    source, target = formulation.nodes[link.source], formulation.nodes[link.target]
    given = source.results(link.made.result)
    wanted = _wanted(target, link)
    value = formulation.skeleton.values[link.made]
    rows, columns = (list(dict.fromkeys(layouts)) for layouts in (given, wanted))
    is_sent = matrix(value.shape, value.dtype, rows, columns, formulation.mesh, network) > 0
    places = [rows.index(layout) for layout in given], [columns.index(layout) for layout in wanted]
    return is_sent[np.ix_(*places)]


def _wanted(target: Node, link: Link) -> tuple[Layout, ...]:
    if link.operand is None:
        return target.layouts
    return tuple(division.operands[link.operand] for division in target.divisions)
