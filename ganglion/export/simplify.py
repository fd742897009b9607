"""A traced program without the changes of layout that undo each other.

Layers exchange maps (B, C, H, W) and compute on tokens (B, H * W, C). In eager mode the steps between are views; in a
file each is a node, some of them copies, and most of the time that torch needs to make the file.
"""

from __future__ import annotations

import torch
from torch.fx import Node

_aten = torch.ops.aten


def simplify(program: torch.export.ExportedProgram) -> None:
    """Take out, in place, pairs of operations that leave a tensor as it was, and casts to the dtype that it has."""
    graph = program.graph
    results = set(graph.output_node().all_input_nodes)
    for node in list(graph.nodes):
        if node.target is _aten._assert_tensor_metadata.default:
            graph.erase_node(node)
            continue
        source = _same_as(node)
        if source is not None and node not in results:
            node.replace_all_uses_with(source)
    graph.eliminate_dead_code()
    program.graph_module.recompile()


def _same_as(node: Node) -> Node | None:
    """An earlier node with the value of this one."""
    if node.op != "call_function" or not node.args or not isinstance(node.args[0], Node):
        return None
    before = node.args[0]
    if node.target is _aten.to.dtype:
        return before if before.meta["val"].dtype == node.args[1] else None
    if not before.args or not isinstance(before.args[0], Node):
        return None
    first = before.args[0]
    if node.target is _aten.permute.default and before.target is node.target:
        both = [before.args[1][i] for i in node.args[1]]  # type: ignore[index, union-attr]
        return first if both == list(range(len(both))) else None
    if node.target is _aten.flatten.using_ints and before.target is _aten.unflatten.int:
        axis, sides = before.args[1], before.args[2]
        if node.args[1:] == (axis, axis + len(sides) - 1):  # type: ignore[operator, arg-type]
            return first
    if node.target is _aten.unflatten.int and before.target is _aten.flatten.using_ints:
        if _rank(first) == _rank(node) and before.args[1] == node.args[1]:
            known = first.meta["val"].shape[before.args[1] : before.args[2] + 1]  # type: ignore[operator, misc]
            sides = [s.meta["val"] if isinstance(s, Node) else s for s in node.args[2]]  # type: ignore[union-attr]
            if all(_equal(a, b) for a, b in zip(known, sides, strict=True)):
                return first
    return None


def _rank(node: Node) -> int:
    return node.meta["val"].dim()


def _equal(a: int | torch.SymInt, b: int | torch.SymInt) -> bool:
    """Whether two sides are the same number or the same expression."""
    return str(a) == str(b)
