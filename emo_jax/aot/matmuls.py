"""FLOPs of matrix products in a compiled program: dots, convolutions, and kernels by their shapes.

XLA's own count cannot be used: it counts a loop's body once and a kernel as nothing.
"""

import json
import math
import re
from dataclasses import dataclass

from emo_jax.aot.hlo import Array, Instruction, Program

# bfloat16 passes of the matrix unit per float32 product, by `operand_precision`.
PASSES = {"highest": 6, "high": 3, "default": 1}
VECTOR_FREE = {  # opcodes that only create or move values
    *("parameter", "constant", "get-tuple-element", "tuple", "bitcast", "copy", "reshape"),
    *("broadcast", "transpose", "slice", "dynamic-slice", "dynamic-update-slice", "concatenate"),
    *("pad", "iota", "gather", "fusion", "dot", "convolution", "custom-call", "while", "call"),
    *("bitcast-convert", "reverse", "after-all", "add-dependency", "partition-id", "replica-id"),
}


@dataclass(frozen=True)
class Kernel:
    """A hand-written kernel, with FLOPs derived from its shapes."""

    kind: str  # grouped matmul, attention, other
    name: str
    flops: float
    # For a grouped matmul, the FLOPs if every row of its buffer contained a token.
    worst_flops: float


def dot_flops(dot: Instruction) -> int:
    """FLOPs of a dot: 2 · elements of the result · length of the sums."""
    lhs = dot.operand(0).arrays[0]
    text = dot.attribute("lhs_contracting_dims") or "{}"
    contracted = math.prod(lhs.dims[int(n)] for n in re.findall(r"\d+", text))
    return 2 * dot.arrays[0].size * contracted


def convolution_flops(conv: Instruction) -> int:
    """FLOPs of a convolution, the TPU form of every dot; products with padding do not count."""
    lhs, rhs, out = conv.operand(0).arrays[0], conv.operand(1).arrays[0], conv.arrays[0]
    labels = conv.attribute("dim_labels") or ""
    lhs_labels, rhs_labels, out_labels = re.split(r"_|->", labels)
    spatial = [c for c in out_labels if c.isdigit()]
    window = dict(re.findall(r"(\w+)=([^\s}]+)", conv.attribute("window") or ""))

    def setting(name: str, i: int, default: int) -> int:
        return int(window[name].split("x")[i]) if name in window else default

    positions = 1
    for i, label in enumerate(sorted(spatial, key=int)):
        low = int(window["pad"].split("x")[i].split("_")[0]) if "pad" in window else 0
        stride, dilation = setting("stride", i, 1), setting("rhs_dilate", i, 1)
        base = setting("lhs_dilate", i, 1)
        size_lhs = lhs.dims[lhs_labels.index(label)]
        size_out = out.dims[out_labels.index(label)]
        size_rhs = rhs.dims[rhs_labels.index(label)]
        positions *= _valid(size_lhs, size_rhs, size_out, low, stride, dilation, base)
    features_in = rhs.dims[rhs_labels.index("i")]
    features_out = out.dims[out_labels.index("f")]
    batch = out.dims[out_labels.index("b")]
    return 2 * positions * features_in * features_out * batch


def _valid(lhs: int, rhs: int, out: int, low: int, stride: int, dilation: int, base: int) -> int:
    """Pairs of an output and a kernel position that hit an input, along one dimension."""
    end, count = (lhs - 1) * base + 1, 0
    for k in range(rhs):
        first = k * dilation - low  # input position of output 0
        if base == 1:
            # 0 <= first + o·stride < end
            lowest = max(0, -(first // stride))
            highest = min(out - 1, (end - 1 - first) // stride)
            count += max(0, highest - lowest + 1)
        else:
            count += sum(
                0 <= first + o * stride < end and (first + o * stride) % base == 0
                for o in range(out)
            )
    return count


def passes(instruction: Instruction) -> int:
    """Number of bfloat16 products per product of this instruction on a TPU."""
    names = re.findall(r"\w+", instruction.attribute("operand_precision") or "")
    return max((PASSES.get(name, 1) for name in names), default=1)


def vector_flops(program: Program, instruction: Instruction) -> int:
    """Elementwise operations and reductions: one FLOP per result or reduced element."""
    total = 0
    for inner in program.inside(instruction):
        if inner.opcode in VECTOR_FREE or "-done" in inner.opcode or "-start" in inner.opcode:
            continue
        if inner.opcode in ("reduce", "reduce-window", "scatter", "sort"):
            total += inner.operand(0).arrays[0].size
        else:
            total += sum(a.size for a in inner.arrays[:1])
    return total


# --- kernels -------------------------------------------------------------------------------------


def is_kernel(instruction: Instruction) -> bool:
    """Whether it is a Mosaic kernel for a TPU."""
    target = instruction.attribute("custom_call_target") or ""
    return instruction.opcode == "custom-call" and target.strip('"') == "tpu_custom_call"


def kernel(instruction: Instruction, expected_rows: float) -> Kernel:
    """What a kernel computes, judging by its name and shapes.

    Args:
      instruction: one for which `is_kernel` is true.
      expected_rows: rows that a chip's experts compute if routing is balanced; a buffer may be
        larger, but kernels stop at the last row that contains a token.
    """
    name = instruction.name
    arrays = [a for a in (*instruction.operand_arrays(), *instruction.arrays) if _is_float(a)]
    text = f"{name} {instruction.op_name}".lower()
    if re.search(r"gmm|ragged_dot|grouped", text):
        weights = [a for a in arrays if len(a.dims) == 3]
        rows = [a for a in arrays if len(a.dims) == 2]
        if weights and rows:
            _, K, N = max(weights, key=lambda a: a.size).dims
            M = max(a.dims[0] if a.dims[1] in (K, N) else a.dims[1] for a in rows)
            one_row = 2.0 * K * N
            return Kernel("grouped matmul", name, one_row * min(M, expected_rows), one_row * M)
    if re.search(r"splash|flash|attention", text):
        heads = [a for a in arrays if len(a.dims) >= 3 and a.dims[-1] <= 512]
        if len(heads) >= 3:
            query, key = heads[0], heads[1]
            products = _attention_products(text, instruction.rest)
            pairs = math.prod(query.dims[:-1]) * key.dims[-2]
            full = 2.0 * pairs * query.dims[-1] * products
            share = causal_share(key.dims[-2], instruction.rest)
            return Kernel("attention", name, full * share, full)
    return Kernel("other", name, 0.0, 0.0)


def _is_float(array: Array) -> bool:
    return array.dtype.startswith(("f", "bf"))


def _attention_products(name: str, rest: str) -> int:
    """Matrix products per pass: forward QKᵀ and PV; backward QKᵀ, dOVᵀ and what follows."""
    if "dkv" in name:
        return 5 if '"use_fused_bwd_kernel\\": true' in rest else 4
    return 3 if "_dq" in name else 2


def causal_share(num_keys: int, rest: str) -> float:
    """Share of the query-key blocks that a causal mask keeps; blocks are not split."""
    found = re.search(r'"xprof_metadata":"(\{.*?\})"', rest, re.DOTALL)
    sizes: dict = {}
    if found:
        try:
            sizes = json.loads(found[1].replace('\\"', '"'))
        except ValueError:
            sizes = {}
    block_q = next((v for k, v in sizes.items() if k.startswith("block_q")), 1)
    block_kv = next((v for k, v in sizes.items() if k.startswith("block_kv")), 1)
    if block_q == block_kv == 1:
        return 0.5
    rows = range(block_q, num_keys + 1, block_q)
    blocks = -(-num_keys // block_kv)
    return sum(-(-end // block_kv) for end in rows) / (len(rows) * blocks)
