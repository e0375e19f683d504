"""The reader of compiled programs and what is counted in them, where the answer is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from emo_jax.aot import hlo, matmuls, traffic
from emo_jax.aot.collectives import axis_groups, collectives, replica_groups
from emo_jax.aot.counts import count

P = PartitionSpec


def _program(function, *shapes, mesh=None, specs=None) -> hlo.Program:
    """A function as the CPU's compiler makes it."""
    args = [
        jax.ShapeDtypeStruct(
            shape,
            jnp.float32,
            sharding=None if mesh is None else NamedSharding(mesh, spec),
        )
        for shape, spec in zip(shapes, specs or [None] * len(shapes), strict=True)
    ]
    return hlo.parse(jax.jit(function).lower(*args).compile().as_text())


def _flops(program) -> float:
    return count(program, {"x": 1}).total_flops


def test_a_dot():
    program = _program(lambda a, b: a @ b, (64, 32), (32, 48))
    assert _flops(program) == 2 * 64 * 32 * 48


def test_a_batched_dot_with_several_contracted_axes():
    program = _program(lambda a, b: jnp.einsum("gabk,gkbn->gan", a, b), (5, 6, 7, 8), (5, 8, 7, 9))
    assert _flops(program) == 2 * 5 * 6 * 9 * 7 * 8


def test_a_loop_in_a_loop_runs_its_body_as_often_as_both():
    def inner(x, w):
        return jnp.tanh(x @ w), None

    def outer(x, _):
        x, _ = lax.scan(inner, x, jnp.ones((5, 16, 16)))
        return x @ x, None

    program = _program(lambda x: lax.scan(outer, x, None, length=7)[0], (16, 16))
    assert _flops(program) == 7 * (5 + 1) * 2 * 16**3
    assert not count(program, {"x": 1}).open_loops


def test_a_loop_counts_from_its_start_in_its_steps():
    def body(state):
        i, x = state
        return i + 3, jnp.tanh(x @ x)

    # 4, 7, 10, 13, 16, 19: six times.
    program = _program(
        lambda x: lax.while_loop(lambda s: s[0] < 20, body, (jnp.int32(4), x))[1], (16, 16)
    )
    assert _flops(program) == 6 * 2 * 16**3


def test_a_loop_of_a_length_in_the_data_is_counted_once_and_named():
    def function(x):
        times = jnp.sum(x > 0)
        return lax.fori_loop(0, times, lambda _, x: jnp.tanh(x @ x), x)

    counts = count(_program(function, (16, 16)), {"x": 1})
    assert counts.total_flops == 2 * 16**3
    assert [name for name in counts.open_loops.values() if "while" in name]


def test_both_branches_of_a_conditional_count():
    def function(x):
        return lax.cond(x.sum() > 0, lambda x: x @ x, lambda x: (x @ x) @ x, x)

    assert _flops(_program(function, (16, 16))) == 3 * 2 * 16**3


@pytest.mark.parametrize(
    ("shape", "kernel", "settings"),
    [
        ((2, 9, 9, 4), (3, 3, 4, 8), dict(window_strides=(1, 1), padding="VALID")),
        ((2, 9, 9, 4), (3, 3, 4, 8), dict(window_strides=(2, 2), padding="SAME")),
        (
            (1, 5, 6, 2),
            (2, 3, 2, 4),
            dict(window_strides=(1, 1), padding=((2, 1), (0, 3)), lhs_dilation=(2, 3)),
        ),
        (
            (1, 9, 9, 2),
            (2, 3, 2, 4),
            dict(window_strides=(1, 2), padding="VALID", rhs_dilation=(3, 2)),
        ),
    ],
    ids=["valid", "strided", "dilated input", "dilated kernel"],
)
def test_a_convolution_counts_products_with_inputs_and_not_with_padding(shape, kernel, settings):
    def convolve(x, w, **more):
        return lax.conv_general_dilated(
            x, w, dimension_numbers=("NHWC", "HWIO", "NHWC"), **settings, **more
        )

    program = _program(convolve, shape, kernel)
    (conv,) = [
        i
        for v in program.visits()
        for i in program.inside(v.instruction)
        if i.opcode == "convolution"
    ]
    # Ones everywhere: an output is the number of products in it.
    products = convolve(jnp.ones(shape), jnp.ones(kernel)).sum()
    assert matmuls.convolution_flops(conv) == 2 * int(products)


def test_a_fusion_reads_its_slice_and_writes_its_update():
    """A layer of a loop touches its own weights and not the stack of all."""

    def function(stack, x):
        def body(x, w):
            return x + w, x * 2.0

        return lax.scan(body, x, stack)

    program = _program(function, (100, 64, 64), (64, 64))
    counts = count(program, {"x": 1})
    one = 64 * 64 * 4
    # Reads w and x, writes x and an output, 100 times: 4 arrays, some more where not fused.
    assert 3 * 100 * one <= counts.hbm_bytes <= 9 * 100 * one


def test_collectives_have_the_bytes_of_their_shapes_and_the_axes_of_the_mesh():
    devices = np.asarray(jax.devices()).reshape(2, 4)
    mesh = Mesh(devices, ("a", "b"))

    def local(x):
        whole = lax.all_gather(x, "b", axis=0, tiled=True)
        part = lax.psum_scatter(whole, "a", scatter_dimension=0, tiled=True)
        return lax.psum(part, ("a", "b")) + lax.ppermute(
            part, "b", [(i, (i + 1) % 4) for i in range(4)]
        )

    def function(x):
        def body(x, _):
            # A rest of x keeps the loop's shapes: 32 rows on each of 8 devices.
            return x + local(x)[:1], None

        mapped = jax.shard_map(
            lambda x: lax.scan(body, x, None, length=3)[0],
            mesh=mesh,
            in_specs=P(("a", "b")),
            out_specs=P(("a", "b")),
            check_vma=False,
        )
        return mapped(x)

    program = _program(function, (256, 10), mesh=mesh, specs=[P(("a", "b"))])
    found = {(c.kind, c.axes): c for c in collectives(program, {"a": 2, "b": 4})}
    own = 32 * 10 * 4
    gather, scatter = found["all-gather", "b"], found["reduce-scatter", "a"]
    assert (gather.payload, gather.wire, gather.times) == (4 * own, 3 * own, 3)
    assert (scatter.payload, scatter.wire, scatter.times) == (4 * own, 2 * own, 3)
    summed = found["all-reduce", "a × b"]
    assert (summed.payload, summed.wire, summed.times) == (2 * own, 2 * 2 * own * 7 / 8, 3)
    permuted = found["collective-permute", "b"]
    assert (permuted.payload, permuted.group_size, permuted.times) == (2 * own, 2, 3)


def _groups(text: str) -> list[list[int]]:
    line = f"  %x = f32[8]{{0}} all-reduce(%y), channel_id=1, {text}, use_global_device_ids=true"
    computation = hlo.Computation("c", False)
    return replica_groups(hlo._instruction(line, computation), 8)


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("replica_groups={{0,1},{2,3}}", [[0, 1], [2, 3]]),
        ("replica_groups={}", [[0, 1, 2, 3, 4, 5, 6, 7]]),
        ("replica_groups=[2,4]<=[8]", [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", [[0, 4], [1, 5], [2, 6], [3, 7]]),
        ("replica_groups=mesh['a'=2,'b'=4] {'b'}", [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ("replica_groups=mesh['a'=2,'b'=4] {'a'}", [[0, 4], [1, 5], [2, 6], [3, 7]]),
        ("replica_groups=mesh['a'=2,'b'=4] {'b':(1)2}", [[0, 2], [1, 3], [4, 6], [5, 7]]),
        ("replica_groups=mesh['a'=2,'b'=4] {'b':(2)2}", [[0, 1], [2, 3], [4, 5], [6, 7]]),
        (
            "replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'b'}",
            [[0, 4], [1, 5], [2, 6], [3, 7]],
        ),
        ("replica_groups=mesh['a'=2,'b'=1,'c'=4] {'c','a'}", [[0, 4, 1, 5, 2, 6, 3, 7]]),
    ],
)
def test_every_way_in_which_groups_are_written(text, groups):
    assert _groups(text) == groups


def test_groups_of_every_set_of_axes_are_told_apart():
    shape = {"replica": 1, "fsdp": 4, "expert": 2, "context": 2, "tensor": 1}
    names = axis_groups(shape)
    pairs = {"fsdp × expert", "fsdp × context", "expert × context"}
    assert len(names) == 7
    assert set(names.values()) == {"fsdp", "expert", "context", "fsdp × expert × context"} | pairs
    ids = np.arange(16).reshape(4, 2, 2)
    by_fsdp = frozenset(frozenset(ids[:, i, j].tolist()) for i in range(2) for j in range(2))
    assert names[by_fsdp] == "fsdp"


_OF_TWO_SLICES = """HloModule jit_f, is_scheduled=true, num_partitions=4, frontend_attributes={a="0"}

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

ENTRY %main (x: f32[1024,8]) -> f32[256,8] {
  %x = f32[1024,8]{1,0} parameter(0)
  %token = token[] after-all()
  %part = f32[256,8]{1,0} reduce-scatter(%x), channel_id=1, replica_groups={{0,1,2,3}}, use_global_device_ids=true, dimensions={0}, to_apply=%add
  %send = (f32[256,8]{1,0}, u32[]{:S(2)}, token[]) send(%part, %token), channel_id=2, is_host_transfer=true, frontend_attributes={_xla_host_transfer_rendezvous="all-reduce_0",_xla_megascale_reduce_operation="SUM",_xla_megascale_target="{1,2}x{0:3}",_xla_megascale_transfer_type="ALL_REDUCE"}
  %recv = (f32[256,8]{1,0}, u32[]{:S(2)}, token[]) recv(%token), channel_id=1, is_host_transfer=true, frontend_attributes={_xla_host_transfer_rendezvous="all-reduce_0",_xla_megascale_reduce_operation="SUM",_xla_megascale_target="{1,2}x{0:3}",_xla_megascale_transfer_type="ALL_REDUCE"}
  %sent = token[] send-done(%send), channel_id=2, is_host_transfer=true
  %received = (f32[256,8]{1,0}, token[]) recv-done(%recv), channel_id=1, is_host_transfer=true
  ROOT %all = f32[256,8]{1,0} get-tuple-element(%received), index=0
}
"""  # noqa: E501


def test_what_crosses_between_slices_counts_as_a_collective_of_its_axis():
    """A slice's program numbers its own devices and leaves the network between to the host."""
    program = hlo.parse(_OF_TWO_SLICES)
    found = {c.kind: c for c in collectives(program, {"replica": 2, "fsdp": 4})}
    inside, between = found["reduce-scatter"], found["all-reduce"]
    assert (inside.axes, inside.group_size, inside.payload) == ("fsdp", 4, 1024 * 8 * 4)
    assert (between.axes, between.group, between.payload) == ("replica", (0, 4), 256 * 8 * 4)
    assert between.wire == 2 * between.payload / 2
    assert len(found) == 2
    counted = {
        i.name: traffic.instruction_bytes(program, i) for i in program.entry.instructions.values()
    }
    assert counted["send"] == counted["recv"] == 256 * 8 * 4
    # Four slices in two pairs.
    pairs = hlo.parse(_OF_TWO_SLICES.replace("{1,2}x{0:3}", "{{1,2},{3,4}}x{0:3}"))
    found = {c.kind: c for c in collectives(pairs, {"replica": 2, "expert": 2, "fsdp": 4})}
    assert (found["all-reduce"].axes, found["reduce-scatter"].axes) == ("expert", "fsdp")


def test_instructions_may_be_split_over_lines():
    text = """HloModule m

ENTRY %main (p: f32[4]) -> f32[4] {
  %p = f32[4]{0:T(128)} parameter(0)
  ROOT %k.1 = (f32[4]{0:S(1)}, /*index=1*/bf16[2,3]{1,0}) custom-call(%p), CALL, META={
"a":"{\\"b\\": 1}"
}}, metadata={op_name="jit(f)/experts/gmm" stack_frame_id=7}
}, execution_thread="sparsecore"
"""
    text = text.replace("CALL", 'custom_call_target="tpu_custom_call"')
    text = text.replace("META", "frontend_attributes={kernel_metadata")
    program = hlo.parse(text)
    kernel = program.entry.root
    assert kernel.op_name == "jit(f)/experts/gmm"
    assert [(a.dims, a.space) for a in kernel.arrays] == [((4,), 1), ((2, 3), 0)]
    assert matmuls.is_kernel(kernel)
    # The first result lies in the vector memory.
    assert traffic.instruction_bytes(program, kernel) == 4 * 4 + 2 * 3 * 2


def test_text_that_is_no_program_is_refused():
    with pytest.raises(ValueError, match="no entry computation"):
        hlo.parse("nothing here\n")
