"""Collectives of a compiled program: how many bytes, how often, and over which mesh axes."""

import itertools
import math
import re
from dataclasses import dataclass

import numpy as np

from emo_jax.aot.hlo import Instruction, Program, Visit
from emo_jax.aot.traffic import is_continued

KINDS = (
    *("all-gather", "all-reduce", "reduce-scatter", "ragged-all-to-all", "all-to-all"),
    *("collective-permute", "collective-broadcast"),
)
NO_AXIS = "one chip"
# Between slices: `{1,2}x{0:3}` pairs devices 0 to 3 of slice 1 with the same devices of slice 2.
_SLICES = re.compile(r'_xla_megascale_target="([^"]*)x\{[^"]*"')
_TRANSFER = re.compile(r'_xla_megascale_transfer_type="(\w+)"')
_NAMED_GROUPS = re.compile(r"replica_groups=(mesh\[.*?\](?:, device_ids=.*?\))? \{.*?\})")
Groups = frozenset[frozenset[int]]


@dataclass(frozen=True)
class Collective:
    """One collective instruction of the program, on one chip.

    Args:
      payload: bytes of the whole array that the chips of a group share: the output of a gather, the
        input of a reduction, what an exchange sends.
      wire: bytes that each chip has to receive with the best known algorithm.
      times: how often a step runs it.
      group: mesh positions of the devices of one group.
    """

    kind: str
    axes: str
    group_size: int
    payload: int
    wire: float
    times: int
    op_name: str
    group: tuple[int, ...] = ()


def axis_groups(mesh_shape: dict[str, int]) -> dict[Groups, str]:
    """For each set of axes, the groups of devices (mesh positions) that differ only along it."""
    names = [name for name, size in mesh_shape.items() if size > 1]
    ids = np.arange(math.prod(mesh_shape.values())).reshape(tuple(mesh_shape.values()))
    order = list(mesh_shape)
    found: dict[Groups, str] = {}
    for count in range(1, len(names) + 1):
        for axes in itertools.combinations(names, count):
            last = [order.index(a) for a in axes]
            rest = [i for i in range(len(order)) if i not in last]
            size = math.prod(mesh_shape[a] for a in axes)
            rows = ids.transpose(*rest, *last).reshape(-1, size)
            found.setdefault(frozenset(frozenset(r) for r in rows.tolist()), " × ".join(axes))
    return found


def collectives(
    program: Program, mesh_shape: dict[str, int], visits: list[Visit] | None = None
) -> list[Collective]:
    """All collectives of a step; asynchronous ones are counted where they start.

    Slices are consecutive in the mesh. Each runs the same program, which numbers its own devices;
    what crosses the network between slices is sent and received by the host.
    """
    known = axis_groups(mesh_shape)
    num_devices = math.prod(mesh_shape.values())
    of_slice = program.num_partitions
    if not of_slice or num_devices % of_slice:
        of_slice = num_devices
    found = []
    for visit in program.visits() if visits is None else visits:
        for inner in program.inside(visit.instruction):
            kind = _kind(inner)
            if kind is None or is_continued(inner):
                continue
            if inner.opcode == "send":
                groups = _slice_groups(inner, num_devices, of_slice)
            else:
                groups = [
                    [first + place for place in group]
                    for first in range(0, num_devices, of_slice)
                    for group in replica_groups(inner, of_slice)
                ]
            found.append(_collective(inner, kind, groups, known, visit.times))
    return found


def _kind(instruction: Instruction) -> str | None:
    opcode = instruction.opcode.removesuffix("-start")
    if opcode == "send" and (transfer := _TRANSFER.search(instruction.rest)):
        kind = transfer[1].lower().replace("_", "-")
        return kind if kind in KINDS else "collective-permute"
    if opcode not in KINDS:
        return None
    # On TPUs a reduce-scatter appears as an all-reduce in a fusion that keeps a part of it.
    if instruction.computation.name.startswith("all-reduce-scatter"):
        return "reduce-scatter"
    return opcode


def _collective(
    instruction: Instruction, kind: str, groups: list[list[int]], known: dict[Groups, str], n: int
) -> Collective:
    size = max((len(g) for g in groups), default=1)
    operands = instruction.operand_arrays()
    if kind == "ragged-all-to-all":
        # Of the arrays it sends from and fills, one contains the actual rows and the other has room
        # for the worst case; the remaining operands are offsets.
        own = min(a.bytes for a in operands[:2])
    else:
        own = sum(a.bytes for a in operands)
    share = (size - 1) / size
    payload, wire = {
        "all-gather": (own * size, own * (size - 1)),
        "all-reduce": (own, 2 * own * share),
        "reduce-scatter": (own, own * share),
        "all-to-all": (own, own * share),
        "ragged-all-to-all": (own, own * share),
        "collective-permute": (own, own),
        "collective-broadcast": (own, own),
    }[kind]
    return Collective(
        kind,
        _axes(kind, groups, known, size),
        size,
        payload,
        float(wire),
        n,
        instruction.op_name,
        tuple(next((group for group in groups if len(group) == size), ())),
    )


def _axes(kind: str, groups: list[list[int]], known: dict[Groups, str], size: int) -> str:
    if size == 1:
        return NO_AXIS
    if kind == "collective-permute":
        return _smallest(groups, known) or "other"
    exact = known.get(frozenset(frozenset(g) for g in groups))
    if exact is not None:
        return exact
    whole = _smallest(groups, known)
    return f"{whole}, {size} of each" if whole else "other"


def _smallest(groups: list[list[int]], known: dict[Groups, str]) -> str | None:
    """The smallest set of axes such that each of these groups lies within one of its groups."""
    for candidate, name in sorted(known.items(), key=lambda item: len(next(iter(item[0])))):
        where = {device: group for group in candidate for device in group}
        if all(len({where.get(device) for device in group}) == 1 for group in groups):
            return name
    return None


def replica_groups(instruction: Instruction, num_devices: int) -> list[list[int]]:
    """Groups of mesh positions; for a permute, its pairs.

    Parses `{{0,1},{2,3}}`, `[2,4]<=[4,2]T(1,0)` and `mesh['a'=2,'b'=4] {'b'}`.
    """
    text = instruction.attribute("source_target_pairs") or ""
    if not text:
        named = _NAMED_GROUPS.search(instruction.rest)
        text = named[1] if named else instruction.attribute("replica_groups") or ""
    if text.startswith("mesh"):
        return _named_groups(text)
    if "<=" in text:
        shape, _, source = text.partition("<=")
        dims, _, order = source.partition("T")
        sizes = [int(n) for n in re.findall(r"\d+", dims)]
        ids = np.arange(math.prod(sizes)).reshape(sizes)
        if order:
            ids = ids.transpose([int(n) for n in re.findall(r"\d+", order)])
        rows, columns = (int(n) for n in re.findall(r"\d+", shape))
        return ids.reshape(rows, columns).tolist()
    groups = [
        [int(n) for n in group.split(",") if n.strip()]
        for group in re.findall(r"\{([\d,\s]*)\}", text)
    ]
    groups = [g for g in groups if g]
    return groups or [list(range(num_devices))]


def _slice_groups(send: Instruction, num_devices: int, of_slice: int) -> list[list[int]]:
    """Mesh positions of the groups of devices among which `send` exchanges data between slices."""
    target = _SLICES.search(send.rest)
    sets = re.findall(r"\{([\d,]+)\}", target[1]) if target else []
    slices = [[int(n) - 1 for n in found.split(",")] for found in sets]
    slices = slices or [list(range(num_devices // of_slice))]
    return [[n * of_slice + place for n in each] for each in slices for place in range(of_slice)]


def _named_groups(text: str) -> list[list[int]]:
    """Parses `mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'b'}`; `'b':(2)2` is part of an axis."""
    head, _, tail = text.partition("]")
    sizes = {name: int(n) for name, n in re.findall(r"'([^']*)'=(\d+)", head)}
    ids = np.arange(math.prod(sizes.values()))
    order = re.search(r"device_ids=\(\[([\d,]*)\](?:T\(([\d,]*)\))?\)", tail)
    listed = re.search(r"device_ids=\(([\d,\s]+)\)", tail)
    if order:
        dims = [int(n) for n in order[1].split(",")]
        ids = ids.reshape(dims)
        if order[2]:
            ids = ids.transpose([int(n) for n in order[2].split(",")])
    elif listed:
        ids = np.asarray([int(n) for n in listed[1].split(",")])
    # Axes are split where only part of one is used, so that every reference is a whole dimension.
    used = re.findall(r"'([^']*)'(?::\((\d+)\)(\d+))?", tail[tail.rindex("{") :])
    dims, names = [], []
    for name, size in sizes.items():
        parts = [(int(pre), int(n)) for used_name, pre, n in used if used_name == name and pre]
        cuts = sorted({1, size, *(p for p, _ in parts), *(p * n for p, n in parts)})
        for low, high in itertools.pairwise(cuts):
            dims.append(high // low)
            names.append((name, low))
        if size == 1:
            dims.append(1)
            names.append((name, 1))
    chosen = []
    for name, pre, n in used:
        whole = [i for i, (axis, _) in enumerate(names) if axis == name]
        if pre:
            low, high = int(pre), int(pre) * int(n)
            whole = [i for i in whole if low <= names[i][1] < high]
        chosen += whole
    rest = [i for i in range(len(dims)) if i not in chosen]
    size = math.prod(dims[i] for i in chosen)
    return ids.reshape(dims).transpose(*rest, *chosen).reshape(-1, size).tolist()
