"""The breakdown of a step: of a real profile, and of the layouts of GPUs' and TPUs' profiles."""

import re
import tempfile
from functools import cache
from pathlib import Path

import pytest
import runs
from jax.profiler import ProfileData
from test_bench import SMALL

from emo_jax.bench import breakdown as breakdown_lib
from emo_jax.bench.breakdown import Origin
from emo_jax.bench.timing import Runner
from emo_jax.config.file import load_config
from emo_jax.errors import EmoError

# Real compiles or profiles: longer than the README's tests may take.
pytestmark = pytest.mark.system


@cache
def profiled(file, *overrides):
    """A real profile of three steps on eight devices: (breakdown, profile, program)."""
    runner = Runner(load_config(f"{runs.REPO}/experiments/{file}", [*SMALL[:-1], *overrides]))
    runner.seconds()
    with tempfile.TemporaryDirectory() as folder:
        found = runner.profiled(Path(folder), 3)
        (trace,) = Path(folder).rglob("*.xplane.pb")
        profile = ProfileData.from_file(str(trace))
    return found, profile, runner.compiled.as_text()


WIDE = ("bench_cpu.py", "--config.train.batch_size=8", "--config.model.remat=full")


def test_the_parts_add_up_to_the_whole():
    found, profile, _ = profiled(*WIDE)
    # By hand: the time in which each thread had a named piece of work.
    seconds = 0.0
    for plane in profile.planes:
        for line in plane.lines:
            reached = 0.0
            for event in sorted(line.events, key=lambda e: e.start_ns):
                if any(name == "hlo_op" for name, _ in event.stats):
                    seconds += max(event.end_ns - max(event.start_ns, reached), 0.0) / 1e9
                    reached = max(event.end_ns, reached)
    assert sum(found.parts.values()) == pytest.approx(seconds / 3, rel=0.02)
    assert found.unknown < 0.01
    assert found.waiting_seconds is None and found.step_seconds > 0
    for row in ("attention", "routing", "dispatch", "experts", "vocab_loss", "optimizer"):
        assert found.parts[row] > 0, row
    assert found.parts["collectives"] > 0  # eight devices
    ways = {origin.direction for origin in found.seconds if origin.part == "experts"}
    assert ways == {"forward", "backward", "recomputed"}
    assert {o.direction for o in found.seconds if o.part == "optimizer"} == {"update"}


def test_larger_experts_take_a_larger_share_and_a_dense_model_has_none():
    def share(found, row):
        return found.parts[row] / found.busy_seconds

    small, _, _ = profiled(*WIDE)
    large, _, _ = profiled(*WIDE, "--config.moe.expert_dim=256")
    assert share(large, "experts") > 1.5 * share(small, "experts")
    no_experts = [x for x in SMALL[:-1] if "moe." not in x]
    dense = Runner(
        load_config(
            f"{runs.REPO}/experiments/dense_1b.py",
            [*no_experts, *("--config.train.batch_size=8", "--config.train.micro_batches=1")],
        )
    )
    parts = {origin.part for origin in breakdown_lib.origins(dense.compiled.as_text()).values()}
    assert not parts & {"experts", "dispatch", "routing"}
    assert {"attention", "dense_mlp", "vocab_loss", "optimizer", "embedding"} <= parts


_TEXT = """HloModule jit_train_step

%region (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%fused (p: f32[8]) -> f32[8] {
  %p = f32[8] parameter(0)
  %m = f32[8] multiply(%p, %p), @transpose(jvp(while))/body/rematted_computation/attention/mul@
  ROOT %c = f32[8] copy(%m)
}

%body (s: (s32[], f32[8])) -> (s32[], f32[8]) {
  %s = (s32[], f32[8]) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %x = f32[8] get-tuple-element(%s), index=1
  %fusion.2 = f32[8] fusion(%x), kind=kLoop, calls=%fused
  %custom-call.7 = f32[8] custom-call(%fusion.2), @jvp(while)/body/dispatch/experts/pallas_call@
  ROOT %t = (s32[], f32[8]) tuple(%i, %custom-call.7)
}

%condition (s2: (s32[], f32[8])) -> pred[] {
  %s2 = (s32[], f32[8]) parameter(0)
  ROOT %yes = pred[] constant(true)
}

ENTRY %main (w: f32[8]) -> f32[8] {
  %w = f32[8] parameter(0)
  %zero = s32[] constant(0)
  %start = (s32[], f32[8]) tuple(%zero, %w)
  %while.1 = (s32[], f32[8]) while(%start), condition=%condition, body=%body
  %y = f32[8] get-tuple-element(%while.1), index=1
  %all-reduce-start.3 = f32[8] all-reduce-start(%y), to_apply=%region, @transpose(jvp())/psum@
  %all-reduce-done.3 = f32[8] all-reduce-done(%all-reduce-start.3)
  ROOT %loop_add_fusion.4 = f32[8] add(%all-reduce-done.3, %w), @optimizer/add@
}
"""
PROGRAM = re.sub("@(.*)@", r'metadata={op_name="jit(train_step)/\1"}', _TEXT)


def _proto(plane, lines, stats=()):
    """An XSpace as text: lines of (name, [(event, start, duration, hlo_op)]) in microseconds."""
    names = sorted({event[0] for _, events in lines for event in events})
    ids = {name: i for i, name in enumerate(names, 1)}
    text = f'planes {{ name: "{plane}"\n'
    for name, i in ids.items():
        escaped = name.replace('"', '\\"')
        text += f'event_metadata {{ key: {i} value {{ id: {i} name: "{escaped}" }} }}\n'
    text += 'stat_metadata { key: 1 value { id: 1 name: "hlo_op" } }\n'
    for line, events in lines:
        text += f'lines {{ name: "{line}"\n'
        for name, start, duration, op in events:
            stat = f'stats {{ metadata_id: 1 str_value: "{op}" }}' if op else ""
            text += (
                f"events {{ metadata_id: {ids[name]} offset_ps: {start * 10**6}"
                f" duration_ps: {duration * 10**6} {stat} }}\n"
            )
        text += "}\n"
    return text + "}\n"


def _profile(*planes):
    return ProfileData.from_serialized_xspace(
        ProfileData.text_proto_to_serialized_xspace("".join(planes))
    )


def test_a_profile_of_gpus():
    """Streams with kernels; lines that sum them up do not count again. Two devices, two steps."""
    compute = [
        ("gemm_kernel", 0, 10, "while.1::custom-call.7"),
        ("fusion_kernel", 10, 6, "while.1::fusion.2"),
        ("loop_add_fusion_4", 40, 4, None),
        ("MemcpyD2H", 44, 2, None),
    ]
    other = [("ncclKernel", 12, 8, "all-reduce-start.3")]
    sums = [("custom-call.7", 0, 10, None), ("jit_train_step", 0, 46, None)]
    lines = [("Stream #7(Compute)", compute), ("Stream #9", other), ("XLA Ops", sums)]
    host = _proto("/host:CPU", [("python", [("x", 0, 900, "fusion.2")])])
    found = breakdown_lib.breakdown(
        _profile(_proto("/device:GPU:0", lines), _proto("/device:GPU:1", lines), host),
        *(PROGRAM, 2, 100e-6),
    )
    expected = {
        Origin("experts", "forward"): 5e-6,
        Origin("attention", "recomputed"): 3e-6,
        Origin("collectives", "backward"): 4e-6,
        Origin("optimizer", "update"): 2e-6,
        Origin("other", ""): 1e-6,
    }
    assert found.seconds == pytest.approx(expected)
    assert found.busy_seconds == pytest.approx(15e-6)
    assert found.overlapped_seconds == pytest.approx(2e-6)
    # At work from 0 to 20 and from 40 to 46 of 100 in two steps.
    assert found.waiting_seconds == pytest.approx((100 - 26) / 2 * 1e-6)
    assert found.unknown == pytest.approx(1 / 15)


def test_a_profile_of_tpus():
    """Names are lines of the program, and a loop's event spans what runs in it."""
    line = PROGRAM.splitlines()
    text = {
        name: next(x.strip() for x in line if f"%{name} = " in x)
        for name in ("while.1", "fusion.2", "custom-call.7", "all-reduce-done.3")
    }
    ops = [
        (text["while.1"], 0, 30, None),
        (text["custom-call.7"], 2, 10, None),
        (text["fusion.2"], 12, 15, None),
        (text["all-reduce-done.3"], 30, 5, None),
    ]
    modules = [("jit_train_step(123)", 0, 35, None)]
    found = breakdown_lib.breakdown(
        _profile(_proto("/device:TPU:0", [("XLA Modules", modules), ("XLA Ops", ops)])),
        *(PROGRAM, 1, 50e-6),
    )
    expected = {
        Origin("other", ""): 5e-6,  # the loop itself
        Origin("experts", "forward"): 10e-6,
        Origin("attention", "recomputed"): 15e-6,
        Origin("collectives", ""): 5e-6,
    }
    assert found.seconds == pytest.approx(expected)
    assert found.waiting_seconds == pytest.approx(15e-6)
    assert found.overlapped_seconds == pytest.approx(0.0, abs=1e-12)
    with pytest.raises(EmoError, match="holds no work of the step"):
        breakdown_lib.breakdown(_profile(_proto("/device:TPU:0", [])), PROGRAM, 1, 1.0)
