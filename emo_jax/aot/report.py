"""The results of `emo compile`, as tables for people and as JSON for programs."""

import math
from collections.abc import Sequence
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from emo_jax.aot.analysis import Analysis
from emo_jax.aot.chips import GIB, Chip, Topology
from emo_jax.aot.compiler import DoesNotFitError, Memory
from emo_jax.aot.search import Tried
from emo_jax.config import Config

GB = 1e9
_LARGEST = 8  # buffers shown


def to_json(found: Analysis) -> dict[str, Any]:
    """Every figure for one device and one step, with its unit in its name."""
    step, counts, roof = found.step, found.counts, found.roofline
    chip, memory = step.topology.chip, step.memory
    return {
        "config": step.config.name,
        "topology": {
            "name": step.topology.name,
            "slices": step.topology.slices,
            "chips": step.topology.num_chips,
            "devices": step.topology.num_devices,
            "mesh": step.mesh_shape,
        },
        "chip": {
            "generation": chip.generation,
            "peak_bf16_flops_per_second": chip.peak_flops,
            "hbm_bytes": chip.hbm_bytes,
            "usable_hbm_bytes": chip.usable_hbm,
            "hbm_bytes_per_second": chip.hbm_bandwidth,
            "ici_bytes_per_second_per_link_one_way": chip.ici_link_bandwidth,
            "ici_links": chip.ici_links,
            "dcn_bytes_per_second": chip.dcn_bandwidth,
        },
        "compile_seconds": step.seconds,
        "memory_bytes": {
            "parameters": memory.parameters,
            "optimizer": memory.optimizer,
            "batch_scalars_and_padding": memory.batch,
            "temporaries_and_new_outputs": memory.temporaries,
            "arguments": memory.arguments,
            "outputs": memory.outputs,
            "aliased": memory.aliased,
            "total": memory.total,
            "code": memory.code,
            "host": memory.host,
            "fits": found.fits,
        },
        "largest_buffers_at_peak": [
            {"bytes": b.bytes, "array": str(b), "op": b.op_name} for b in found.peak.buffers
        ],
        "flops": {
            "total": counts.total_flops,
            "by_part": dict(counts.flops),
            "computed_again": counts.flops_again,
            "bf16_passes": counts.passes_flops,
            "spec_1_5": found.spec_flops,
            "xla_cost_analysis": step.xla_flops,
            "elementwise": counts.vector_flops,
        },
        "kernels": {
            kind: {"calls": n, "flops": flops, "flops_if_buffers_were_full": full}
            for kind, (n, flops, full) in counts.kernels.items()
        },
        "balanced_expert_rows": found.expected_rows,
        "hbm_bytes": {"total": counts.hbm_bytes, "by_part": dict(counts.hbm_bytes_by_part)},
        "collectives": [
            {"kind": kind, "axes": axes, "count": n, "payload_bytes": payload, "wire_bytes": wire}
            for (kind, axes), (n, payload, wire) in grouped(found).items()
        ],
        "loops_counted_once": [name for name in counts.open_loops.values()],
        "roofline_seconds": {
            "matmul": roof.matmul,
            "memory": roof.memory,
            "network": roof.network,
            "network_by_axes": roof.by_axes,
            "max": roof.overlapped,
            "sum": roof.summed,
            "bound": roof.bound,
            "mfu_at_max": found.best_mfu,
        },
    }


def grouped(found: Analysis) -> dict[tuple[str, str], tuple[int, int, float]]:
    """(kind, axes) -> count, bytes of their arrays, bytes received; most received first."""
    sums: dict[tuple[str, str], tuple[int, int, float]] = {}
    for c in found.counts.collectives:
        n, payload, wire = sums.get((c.kind, c.axes), (0, 0, 0.0))
        sums[c.kind, c.axes] = (
            n + c.times,
            payload + c.times * c.payload,
            wire + c.times * c.wire,
        )
    return dict(sorted(sums.items(), key=lambda item: -item[1][2]))


def tables(found: Analysis) -> list[Table | str]:
    """The tables and lines to show."""
    step, counts, roof = found.step, found.counts, found.roofline
    chip = step.topology.chip
    mesh = (
        ", ".join(f"{axis} {n}" for axis, n in step.mesh_shape.items() if n > 1)
        or f"one {chip.device}"
    )
    shown: list[Table | str] = [
        f"{step.config.name} on {step.topology} ({step.topology.size}; {mesh}),"
        f" compiled in {step.seconds:.0f} s; one {chip.device}, one step:",
        _memory(step.memory, chip),
    ]
    shown.append(_largest(found))
    work = _table("work", "", "share", title="FLOPs and bytes of main memory")
    total = counts.total_flops
    for part, flops in sorted(counts.flops.items(), key=lambda item: -item[1]):
        work.add_row(part, _flop(flops), f"{flops / total:.1%}")
    work.add_row("all matrix products", _flop(total), "")
    work.add_row("  of it computed again", _flop(counts.flops_again), "")
    work.add_row("  by the formula of MFU", _flop(found.spec_flops), "SPEC 1.5")
    for kind, (n, flops, full) in counts.kernels.items():
        why = "without the causal cut" if kind == "attention" else "if no row were empty"
        more = f"{_flop(full)} {why}" if full > flops * 1.01 else ""
        work.add_row(f"  {n:,.0f} {kind} kernels", _flop(flops), more)
    work.add_row("main memory, read and written", f"{counts.hbm_bytes / GB:,.2f} GB", "")
    shown.append(work)
    network = _table("collective", "axis", "count", "array GB", "received GB", title="Network")
    for (kind, axes), (n, payload, wire) in grouped(found).items():
        network.add_row(kind, axes, f"{n:,}", f"{payload / GB:,.3f}", f"{wire / GB:,.3f}")
    shown.append(network)
    roofline = _table("roofline", "seconds", "at", title="A step takes at least")
    roofline.add_row("matmul", f"{roof.matmul:.3g}", f"{chip.peak_flops / 1e12:,.0f} TFLOP/s")
    roofline.add_row("memory", f"{roof.memory:.3g}", f"{chip.hbm_bandwidth / GB:,.0f} GB/s")
    links = f"{chip.ici_link_bandwidth / GB:,.0f} GB/s a link, {chip.ici_links} links"
    if chip.devices > 1:
        links += f" a chip, {chip.inner_bandwidth / GB:,.0f} GB/s inside"
    if step.topology.slices > 1:
        links += f"; {chip.dcn_bandwidth / GB:,.4g} GB/s a {chip.device} between slices"
    roofline.add_row("network", f"{roof.network:.3g}", links)
    roofline.add_row("max", f"{roof.overlapped:.3g}", f"{found.best_mfu:.0%} MFU")
    roofline.add_row("sum", f"{roof.summed:.3g}", "")
    shown.append(roofline)
    if counts.open_loops:
        shown.append(
            "Counted once, since only the device knows how often they run: "
            + "; ".join(sorted({short(name) for name in counts.open_loops.values()}))
        )
    other = [kind for kind in counts.kernels if kind == "other"]
    if other:
        shown.append("Kernels of kind `other` are not known and count no FLOPs.")
    return shown


def _flop(flops: float) -> str:
    """FLOPs in the largest unit that gives at least one."""
    for unit, size in (("TFLOP", 1e12), ("GFLOP", 1e9)):
        if flops >= size:
            return f"{flops / size:,.2f} {unit}"
    return f"{flops / 1e6:,.2f} MFLOP"


def short(op_name: str) -> str:
    """The last parts of an operation's name."""
    return "/".join(op_name.split("/")[-3:])


def _table(*columns: str, title: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for i, name in enumerate(columns):
        table.add_column(name, justify="right" if i and name not in ("axis", "at") else "left")
    return table


def _memory(memory: Memory, chip: Chip) -> Table:
    table = _table("memory", "GB", title=f"Memory of a {chip.device}, at its peak")
    for name, size in (
        ("parameters", memory.parameters),
        ("optimizer", memory.optimizer),
        ("batch, scalars, padding of tiles", memory.batch),
        ("temporaries, new outputs", memory.temporaries),
    ):
        table.add_row(name, f"{size / GB:.3f}")
    left = chip.usable_hbm - memory.total
    fits = "fits" if left >= 0 else "does not fit"
    table.add_row(
        f"total: {fits}, {abs(left) / GB:.2f} GB {'free' if left >= 0 else 'too much'}",
        f"{memory.total / GB:.3f} of {chip.usable_hbm / GB:.2f}",
    )
    table.add_row("the program, in addition", f"{memory.code / GB:.3f}")
    if memory.host:
        table.add_row("in the host's memory", f"{memory.host / GB:.3f}")
    return table


def _largest(found: Analysis) -> Table:
    table = _table("temporary", "GB", "of", title="Largest at the peak (estimated)")
    for buffer in found.peak.buffers[:_LARGEST]:
        table.add_row(
            escape(str(buffer)), f"{buffer.bytes / GB:.3f}", escape(short(buffer.op_name))
        )
    table.columns[2].justify = "left"
    return table


# --- when it does not fit ------------------------------------------------------------------------


def what_would_fit(config: Config, error: DoesNotFitError, topology: Topology) -> str:
    """The smallest changes that are estimated to fit, and those that help by an unknown amount."""
    if error.state >= error.usable:
        return _more_room_for_the_state(config, error, topology)
    fitting, helping = [], []
    # Temporaries grow with the windows of a micro-batch, except for gradients.
    fixed = error.state + error.parameters
    if error.usable > fixed:
        ratio = max(2.0, (error.used - fixed) / (error.usable - fixed))
        micro_batches = config.train.micro_batches * 2 ** math.ceil(math.log2(ratio))
        ways = math.prod(error.mesh_shape.get(axis, 1) for axis in ("replica", "fsdp", "expert"))
        if config.train.batch_size % (micro_batches * ways) == 0:
            fitting.append(f"--config.train.micro_batches={micro_batches}")
    if error.optimizer and error.used - error.optimizer <= error.usable:
        fitting.append("--config.optimizer.offload=true")
    if config.model.remat != "full":
        helping.append("--config.model.remat=full")
    if not fitting and error.mesh_shape.get("context", 1) == 1:
        helping.append("--config.mesh.context=2, which cuts windows between chips,")
    said = []
    if fitting:
        said.append(f"by estimate {' or '.join(fitting)} would fit")
    if helping:
        said.append(f"{' and '.join(helping)} would help")
    if not said:
        said.append(f"use more than {topology.size}")
    return "; ".join([*said, "emo compile --search tries such changes"])


def _more_room_for_the_state(config: Config, error: DoesNotFitError, topology: Topology) -> str:
    """Advice when the state alone is too large; it is split over all axes but `replica`."""
    ideas = []
    chip, shape_chips = topology.chip, math.prod(topology.shape)
    larger = [
        shape
        for shape in chip.shapes
        if (n := math.prod(map(int, shape.split("x")))) > shape_chips
        and error.state * shape_chips / n < error.usable
    ]
    if larger:
        ideas.append(f"more chips ({', '.join(larger[:3])})")
    replicas = error.mesh_shape.get("replica", 1)
    if replicas > topology.slices and error.state * topology.slices / replicas < error.usable:
        ideas.append(f"--config.mesh.replica={topology.slices} and a larger mesh.fsdp")
    if error.optimizer and error.parameters < error.usable:
        ideas.append("--config.optimizer.offload=true")
    return (
        f"parameters and optimizer alone take {error.state / GIB:.2f} GiB; by estimate"
        f" {' or '.join(ideas) or 'no slice of this generation'} has room for them"
    )


# --- a search ------------------------------------------------------------------------------------


def search_table(tried: Sequence[Tried]) -> Table:
    """The candidates that fit, fastest first."""
    table = _table(
        *("mesh", "remat", "windows at once", "micro-batches", "GB", "s at least", "s summed"),
        *("bound", "MFU at best"),
        title="What fits, best first",
    )
    for one in tried:
        if one.found is None:
            continue
        found, candidate = one.found, one.candidate
        table.add_row(
            ", ".join(f"{a} {n}" for a, n in candidate.mesh if n > 1) or "one chip",
            candidate.remat,
            str(candidate.windows),
            str(found.step.config.train.micro_batches),
            f"{found.step.memory.total / GB:.2f}",
            f"{found.roofline.overlapped:.3g}",
            f"{found.roofline.summed:.3g}",
            found.roofline.bound,
            f"{found.best_mfu:.0%}",
        )
    return table


def search_json(tried: Sequence[Tried]) -> list[dict[str, Any]]:
    """All candidates tried, in the order of the table, followed by those that did not fit."""
    return [
        {
            "mesh": one.candidate.sizes,
            "remat": one.candidate.remat,
            "windows_at_once": one.candidate.windows,
            "fits": one.found is not None,
            "reason": one.reason,
            "figures": None if one.found is None else to_json(one.found),
        }
        for one in tried
    ]
