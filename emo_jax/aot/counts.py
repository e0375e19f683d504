"""What one chip does per step, from the compiled program: FLOPs by part, bytes, collectives."""

import re
from collections import defaultdict
from dataclasses import dataclass, field

from emo_jax.aot import collectives as collectives_lib
from emo_jax.aot import matmuls, traffic
from emo_jax.aot.collectives import Collective
from emo_jax.aot.hlo import Program

# Named scopes of the train step, by which FLOPs are attributed.
PARTS = (
    *("attention", "routing", "dispatch", "experts", "dense_mlp"),
    *("vocab_loss", "embedding", "optimizer"),
)
OTHER = "other"
_PART = re.compile(r"\b(" + "|".join(PARTS) + r")\b")
_AGAIN = re.compile(r"\b(rematted_computation|checkpoint)\b")


@dataclass
class Counts:
    """Counts for one step on one chip."""

    flops: dict[str, float] = field(default_factory=lambda: defaultdict(float))  # by part
    flops_again: float = 0.0  # those the backward pass recomputes, included in `flops`
    passes_flops: float = 0.0  # bfloat16 FLOPs that the matrix unit spends on them
    # Kernels: calls per step, FLOPs, and FLOPs if every row of their buffers contained a token.
    kernels: dict[str, list[float]] = field(default_factory=lambda: defaultdict(lambda: [0, 0, 0]))
    vector_flops: float = 0.0  # elementwise operations; there is no peak to compare them with
    hbm_bytes: float = 0.0
    hbm_bytes_by_part: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    collectives: list[Collective] = field(default_factory=list)
    open_loops: dict[str, str] = field(default_factory=dict)  # loops counted once: name → origin

    @property
    def total_flops(self) -> float:
        """FLOPs of the matrix products of all parts."""
        return sum(self.flops.values())


def count(
    program: Program, mesh_shape: dict[str, int], *, expected_rows: float = 0.0, layer_runs: int = 1
) -> Counts:
    """Counts everything that the program runs, as often as it runs.

    Args:
      program: the program of one chip.
      mesh_shape: sizes of the mesh axes, in the order of its devices.
      expected_rows: rows of a chip's experts in one run of a layer if routing is balanced; kernel
        buffers may be larger.
      layer_runs: how often a step runs a layer; a kernel that runs more often processes a part of
        the rows each time.
    """
    counts = Counts()
    visits = list(program.visits())
    for visit in visits:
        instruction, times = visit.instruction, visit.times
        for loop in visit.open_loops:
            counts.open_loops.setdefault(loop, "")
        if instruction.name in counts.open_loops or (
            instruction.opcode == "while" and program.trip_count(instruction) is None
        ):
            counts.open_loops[instruction.name] = instruction.op_name
        unused = 0.0  # bytes of a kernel's rows without a token
        for inner in program.inside(instruction):
            if inner.opcode == "dot":
                flops = matmuls.dot_flops(inner)
            elif inner.opcode == "convolution":
                flops = matmuls.convolution_flops(inner)
            else:
                continue
            _add(counts, inner.op_name, times * flops, matmuls.passes(inner))
        if matmuls.is_kernel(instruction):
            parts = max(1.0, times / layer_runs)
            kernel = matmuls.kernel(instruction, expected_rows / parts)
            _add(counts, instruction.op_name, times * kernel.flops, 1)
            if kernel.kind == "grouped matmul":
                share = 1 - kernel.flops / kernel.worst_flops
                unused = share * traffic.row_bytes(instruction)
            entry = counts.kernels[kernel.kind]
            entry[0] += times
            entry[1] += times * kernel.flops
            entry[2] += times * kernel.worst_flops
        counts.vector_flops += times * matmuls.vector_flops(program, instruction)
        read = times * (traffic.instruction_bytes(program, instruction) - unused)
        counts.hbm_bytes += read
        counts.hbm_bytes_by_part[part_of(instruction.op_name)] += read
    counts.collectives = collectives_lib.collectives(program, mesh_shape, visits)
    return counts


def _add(counts: Counts, op_name: str, flops: float, passes: int) -> None:
    counts.flops[part_of(op_name)] += flops
    counts.passes_flops += flops * passes
    if _AGAIN.search(op_name) and "transpose(" in op_name and "rematted" in op_name:
        counts.flops_again += flops


def part_of(op_name: str) -> str:
    """The innermost named scope of the train step that contains an operation."""
    found = _PART.findall(op_name)
    return found[-1] if found else OTHER
