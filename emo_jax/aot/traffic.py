"""Bytes that the instructions of a compiled program read from and write to main memory.

An instruction reads its operands and writes its result, if they are in main memory (the compiler
keeps small ones in the chip's vector memory). A slice, a gather or an in-place update counts only
what it touches, inside fusions too: a layer reads its own weights, not the stack of all layers.
"""

from emo_jax.aot.hlo import HBM, Array, Instruction, Program

NOTHING = {
    *("parameter", "constant", "get-tuple-element", "tuple", "bitcast", "while", "call"),
    *("conditional", "after-all", "add-dependency", "partition-id", "replica-id", "domain"),
    *("optimization-barrier", "opt-barrier", "async-start", "call-start"),
}
VIEWS = {"bitcast", "get-tuple-element", "reshape"}
NO_TRAFFIC_CALLS = ("AllocateBuffer", "AsyncCollective", "AssumeGather", "Sharding")


def instruction_bytes(program: Program, instruction: Instruction) -> int:
    """Bytes read and written by one run of an instruction."""
    opcode = instruction.opcode
    if opcode in NOTHING or opcode.endswith(("-done", "-update")):
        return 0
    if opcode == "fusion":
        return _fusion_bytes(program, instruction)
    operands = (
        [instruction.operand(i) for i in range(len(instruction.operands))]
        if (opcode != "iota")
        else []
    )
    written = sum(_in_hbm(a) for a in instruction.arrays)
    if opcode in ("dynamic-slice", "slice", "gather"):
        read = instruction.arrays[0].bytes if operands[0].arrays[0].space == HBM else 0
        return read + written
    if opcode == "dynamic-update-slice":
        return _in_hbm(operands[1].arrays[0]) + _update(instruction, instruction.arrays[0])
    if opcode == "scatter":
        return sum(_in_hbm(a) for o in operands[1:] for a in o.arrays) + _update(
            instruction, instruction.arrays[0]
        )
    if opcode in ("copy-start", "slice-start"):
        target, source = instruction.arrays[0], operands[0].arrays[0]
        return _in_hbm(target) + (target.bytes if source.space == HBM else 0)
    if opcode == "custom-call" and any(name in instruction.rest for name in NO_TRAFFIC_CALLS):
        return 0
    if opcode == "send":  # its result is its operand
        written = 0
    if opcode.endswith("-start"):  # results of a collective's start repeat its operands
        written = max((_in_hbm(a) for a in instruction.arrays), default=0)
    return sum(_in_hbm(a) for o in operands for a in o.arrays) + written


def row_bytes(kernel: Instruction) -> int:
    """Bytes of the rows (M,D) that a grouped matmul reads and writes, excluding the weights."""
    arrays = [*kernel.operand_arrays(), *kernel.arrays]
    return sum(_in_hbm(a) for a in arrays if len(a.dims) == 2)


def _in_hbm(array: Array) -> int:
    return array.bytes if array.space == HBM else 0


def _update(instruction: Instruction, result: Array) -> int:
    """Bytes that an in-place update writes: the part, not the whole."""
    part = instruction.operand(1 if instruction.opcode == "dynamic-update-slice" else 2)
    return part.arrays[0].bytes if result.space == HBM else 0


def _fusion_bytes(program: Program, fusion: Instruction) -> int:
    body = program.computations[fusion.calls[0]]
    total = 0
    for number, parameter in enumerate(body.parameters):
        outer = fusion.operand(number)
        if len(outer.arrays) == 1 and outer.arrays[0].space == HBM:
            whole = outer.arrays[0].bytes
            total += min(whole, _read(program, parameter, whole))
    root = body.root
    if root.opcode == "tuple":
        made = [root.operand(i) for i in range(len(root.operands))]
        if len(made) != len(fusion.arrays):
            return total + sum(_in_hbm(a) for a in fusion.arrays)
    else:
        made = [root] * len(fusion.arrays)
    return total + sum(
        _written(program, m, a) for m, a in zip(made, fusion.arrays, strict=True) if a.space == HBM
    )


def _read(program: Program, value: Instruction, whole: int) -> int:
    """Bytes read from a fusion's parameter."""
    total = 0
    for user in value.computation.users[value.name]:
        first = user.operands[0] == value.name
        if user.opcode in ("slice", "dynamic-slice", "gather") and first:
            total += user.arrays[0].bytes
        elif user.opcode == "dynamic-update-slice" and first:
            continue  # in place
        elif user.opcode in VIEWS:
            total += _read(program, user, whole)
        elif user.opcode == "fusion":
            inner = program.computations[user.calls[0]].parameters
            for number, name in enumerate(user.operands):
                if name == value.name:
                    total += _read(program, inner[number], whole)
        elif user.opcode == "tuple" or is_async_part(user):
            continue  # passed on
        else:
            return whole
    return total


def _written(program: Program, made: Instruction, result: Array) -> int:
    while made.opcode in VIEWS and made.opcode != "get-tuple-element":
        made = made.operand(0)
    if made.opcode == "parameter" or is_async_part(made):
        return 0
    if made.opcode in ("dynamic-update-slice", "scatter"):
        return _update(made, result)
    if made.opcode == "fusion" and len(made.arrays) == 1:
        return _written(program, program.computations[made.calls[0]].root, result)
    return result.bytes


def is_async_part(instruction: Instruction) -> bool:
    """Whether it is part of an asynchronous collective, which is counted where it starts."""
    if instruction.opcode == "custom-call":
        return "AsyncCollective" in instruction.rest
    return is_continued(instruction)


def is_continued(instruction: Instruction) -> bool:
    """Whether it is a collective in a fusion that continues one that was started before."""
    if not instruction.opcode.startswith(
        ("all-", "reduce-scatter", "collective-", "ragged-all-to-all")
    ):
        return False
    targets = [
        i.rest
        for i in instruction.computation.instructions.values()
        if i.opcode == "custom-call" and "AsyncCollective" in i.rest
    ]
    if any("AsyncCollectiveStart" in rest for rest in targets):
        return False
    if targets:
        return True
    flag = '"async_collective_fusion_config":{"flag_start":"'
    _, found, tail = instruction.rest.partition(flag)
    return bool(found) and not tail.startswith("-1")
