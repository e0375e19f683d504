"""A parser of compiled programs: XLA's HLO text as computations of instructions.

It extracts only what counting needs: names, opcodes, shapes with their memory space, operands, and
the attributes as text. `visits` tells how often each instruction of the program runs.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

BITS = {"pred": 8, "token": 0, "opaque": 0, "s4": 4, "u4": 4, "s2": 2, "u2": 2, "f4e2m1fn": 4}
HBM = 0  # memory space of arrays in main memory; 1 is the TPU's vector memory

CALLS = {"call", "call-start", "async-start"}  # the latter two are asynchronous

_NAME = r"%?([\w.\-]+)"
_INSTRUCTION = re.compile(rf"\s+(ROOT )?{_NAME} = ")
_COMPUTATION = re.compile(rf"(ENTRY )?{_NAME} (?:\(.*)?\{{\s*$")
_ARRAY = re.compile(r"(\w+)\[([\d,<=]*)\](?:\{([^{}]*)\})?")
_END = re.compile(r"\}(, execution_thread=.*)?\s*$")
_OPCODE = re.compile(r"\s*([a-z][\w\-]*)\(")


@dataclass(frozen=True)
class Array:
    """One array of an instruction's result."""

    dtype: str
    dims: tuple[int, ...]
    space: int = HBM

    @property
    def size(self) -> int:
        """Number of elements."""
        size = 1
        for n in self.dims:
            size *= n
        return size

    @property
    def bytes(self) -> int:
        """Bytes, excluding tile padding."""
        return (self.size * bits(self.dtype) + 7) // 8


def bits(dtype: str) -> int:
    """Bits per element: `bf16` is 16."""
    if dtype in BITS:
        return BITS[dtype]
    match = re.match(r"[a-z]+(\d+)", dtype)
    return int(match[1]) if match else 0


@dataclass
class Instruction:
    """One line of a computation."""

    name: str
    opcode: str
    arrays: tuple[Array, ...]  # leaves of the result
    operands: tuple[str, ...]
    rest: str  # attributes
    is_root: bool
    is_tuple: bool
    computation: "Computation" = field(repr=False)

    def operand(self, i: int) -> "Instruction":
        """The instruction that produces operand i."""
        return self.computation.instructions[self.operands[i]]

    def operand_arrays(self) -> list[Array]:
        """The leaves of all operands."""
        return [a for i in range(len(self.operands)) for a in self.operand(i).arrays]

    def attribute(self, name: str) -> str | None:
        """Value of `name=…` up to the next comma outside brackets."""
        match = re.search(rf"(?:^|[\s,]){name}=", self.rest)
        if match is None:
            return None
        depth, start = 0, match.end()
        for i in range(start, len(self.rest)):
            c = self.rest[i]
            depth += c in "{[(" and 1
            depth -= c in "}])" and 1
            if depth <= 0 and c == ",":
                return self.rest[start:i]
        return self.rest[start:]

    @cached_property
    def op_name(self) -> str:
        """Its origin in the model: `jit(train_step)/…/experts/dot_general`."""
        match = re.search(r'op_name="((?:[^"\\]|\\.)*)"', self.rest)
        return match[1] if match else ""

    @cached_property
    def calls(self) -> list[str]:
        """Names of the computations that run as the body of this instruction."""
        names: list[str] = []
        for attribute in ("calls", "body", "true_computation", "false_computation"):
            value = self.attribute(attribute)
            names += re.findall(_NAME, value) if value else []
        branches = self.attribute("branch_computations")
        names += re.findall(_NAME, branches) if branches else []
        if self.opcode in CALLS and not names:
            value = self.attribute("to_apply")
            names += re.findall(_NAME, value) if value else []
        return names


@dataclass
class Computation:
    """A computation: its instructions in program order."""

    name: str
    is_entry: bool
    instructions: dict[str, Instruction] = field(default_factory=dict)

    @property
    def root(self) -> Instruction:
        """The instruction whose result is that of the computation."""
        last = None
        for instruction in self.instructions.values():
            if instruction.is_root:
                return instruction
            last = instruction
        assert last is not None
        return last

    @cached_property
    def parameters(self) -> list[Instruction]:
        """The parameters, ordered by number."""
        found = [i for i in self.instructions.values() if i.opcode == "parameter"]
        return sorted(found, key=lambda i: int(i.operands[0]))

    @cached_property
    def users(self) -> dict[str, list[Instruction]]:
        """The instructions that read each instruction, by name."""
        users: dict[str, list[Instruction]] = {name: [] for name in self.instructions}
        for instruction in self.instructions.values():
            for name in dict.fromkeys(instruction.operands):
                if name in users and instruction.opcode != "parameter":
                    users[name].append(instruction)
        return users


@dataclass(frozen=True)
class Visit:
    """An instruction that the program runs `times` times."""

    instruction: Instruction
    times: int
    open_loops: tuple[str, ...] = ()  # enclosing loops of unknown length, counted once


@dataclass
class Program:
    """A module's computations."""

    computations: dict[str, Computation]
    entry: Computation
    num_partitions: int = 0  # devices that its groups refer to, those of one slice; 0: not stated

    def visits(self) -> Iterator[Visit]:
        """Every instruction that runs, outside fusions, and how often.

        A loop's body counts as often as the loop runs, or once if only the device knows how often.
        Each branch of a conditional counts.
        """
        yield from self._walk(self.entry, 1, ())

    def _walk(
        self, computation: Computation, times: int, open_loops: tuple[str, ...]
    ) -> Iterator[Visit]:
        for instruction in computation.instructions.values():
            yield Visit(instruction, times, open_loops)
            if instruction.opcode == "while":
                trips = self.trip_count(instruction)
                inside = open_loops if trips is not None else (*open_loops, instruction.name)
                body = self.computations[instruction.calls[0]]
                yield from self._walk(body, times * (1 if trips is None else trips), inside)
            elif instruction.opcode == "conditional" or instruction.opcode in CALLS:
                for name in instruction.calls:
                    yield from self._walk(self.computations[name], times, open_loops)

    def inside(self, instruction: Instruction) -> Iterator[Instruction]:
        """The instructions in a fusion, nested ones expanded; otherwise the instruction itself."""
        if instruction.opcode != "fusion":
            yield instruction
            return
        for name in instruction.calls:
            for inner in self.computations[name].instructions.values():
                yield from self.inside(inner)

    def trip_count(self, loop: Instruction) -> int | None:
        """How often a `while` runs its body; None if only the device knows."""
        known = re.search(r'known_trip_count":\s*\{"n":\s*"?(\d+)', loop.rest)
        if known:
            return int(known[1])
        condition = self.computations[(loop.attribute("condition") or "").lstrip("%")]
        compare = _through_fusion(self, condition.root)
        if compare is None or compare.opcode != "compare":
            return None
        direction = compare.attribute("direction")
        ends = [_value(self, condition, compare, i) for i in (0, 1)]
        if direction in ("LT", "LE"):
            (start, slot), (bound, end_slot) = ends
        elif direction in ("GT", "GE"):
            (bound, end_slot), (start, slot) = ends
        else:
            return None
        if bound is None and end_slot is not None:
            bound = self._initial(loop, end_slot) if self._unchanged(loop, end_slot) else None
        if bound is None or slot is None:
            return None
        step = self._step(loop, slot)
        start = self._initial(loop, slot)
        if step is None or start is None:
            return None
        span = bound - start + (direction in ("LE", "GE"))
        return max(0, -(-span // step))

    def _initial(self, loop: Instruction, slot: int) -> int | None:
        state = loop.operand(0)
        if state.opcode != "tuple":
            return None
        return _constant(state.operand(slot))

    def _unchanged(self, loop: Instruction, slot: int) -> bool:
        body = self.computations[loop.calls[0]]
        if body.root.opcode != "tuple":
            return False
        return _slot(body.root.operand(slot)) == slot

    def _step(self, loop: Instruction, slot: int) -> int | None:
        """The increment that the body adds to a counter."""
        body = self.computations[loop.calls[0]]
        if body.root.opcode != "tuple":
            return None
        made = _through_copies(body.root.operand(slot))
        if made.opcode == "fusion":
            inner = self.computations[made.calls[0]]
            root = inner.root
            if root.opcode != "add":
                return None
            values = [_through_copies(root.operand(i)) for i in (0, 1)]
            outer = [
                made.operand(int(v.operands[0])) if v.opcode == "parameter" else v for v in values
            ]
        elif made.opcode == "add":
            outer = [_through_copies(made.operand(i)) for i in (0, 1)]
        else:
            return None
        steps = [_constant(v) for v in outer]
        return next((s for s in steps if s), None)


def _through_copies(instruction: Instruction) -> Instruction:
    while instruction.opcode in ("copy", "bitcast", "convert", "copy-done", "copy-start"):
        instruction = instruction.operand(0)
    return instruction


def _constant(instruction: Instruction) -> int | None:
    instruction = _through_copies(instruction)
    if instruction.opcode != "constant":
        return None
    try:
        return int(instruction.operands[0])
    except (ValueError, IndexError):
        return None


def _slot(instruction: Instruction) -> int | None:
    """The index of the loop-state element that it is, or None."""
    instruction = _through_copies(instruction)
    if instruction.opcode != "get-tuple-element":
        return None
    if instruction.operand(0).opcode != "parameter":
        return None
    return int(instruction.attribute("index") or -1)


def _through_fusion(program: Program, root: Instruction) -> Instruction | None:
    root = _through_copies(root)
    if root.opcode == "fusion":
        return program.computations[root.calls[0]].root
    return root


def _value(
    program: Program, condition: Computation, compare: Instruction, i: int
) -> tuple[int | None, int | None]:
    """One side of the loop condition: a constant, or the index of a loop-state element."""
    side = _through_copies(compare.operand(i))
    if side.opcode == "parameter" and compare.computation is not condition:
        fusion = _through_copies(condition.root)
        side = _through_copies(fusion.operand(int(side.operands[0])))
    return _constant(side), _slot(side)


# --- reading -------------------------------------------------------------------------------------


def parse(text: str) -> Program:
    """Parses the text of `compiled.as_text()`.

    Raises:
      ValueError: it has no entry computation.
    """
    computations: dict[str, Computation] = {}
    current: Computation | None = None
    entry: Computation | None = None
    pending: list[str] = []

    def flush() -> None:
        if pending and current is not None:
            made = _instruction(" ".join(pending), current)
            if made is not None:
                current.instructions[made.name] = made
        pending.clear()

    for line in text.splitlines():
        if current is None:
            match = None if line.startswith((" ", "HloModule")) else _COMPUTATION.match(line)
            if match:
                current = Computation(match[2], bool(match[1]))
                entry = current if match[1] else entry
        elif _END.match(line):
            flush()
            computations[current.name] = current
            current = None
        elif _INSTRUCTION.match(line):
            flush()
            pending.append(line)
        elif pending:
            pending.append(line)  # an attribute that contains line breaks
    if entry is None:
        raise ValueError("no entry computation: not the text of a compiled program")
    partitions = re.search(r"^HloModule .*\bnum_partitions=(\d+)", text)
    return Program(computations, entry, int(partitions[1]) if partitions else 0)


def _closing(text: str, start: int) -> int:
    """Index at which the bracket opened at `start` closes; strings are skipped."""
    depth, quoted = 0, False
    for i in range(start, len(text)):
        c = text[i]
        if c == '"' and text[i - 1] != "\\":
            quoted = not quoted
        elif not quoted:
            depth += c == "("
            depth -= c == ")"
            if depth == 0:
                return i
    return len(text) - 1


def _instruction(line: str, computation: Computation) -> Instruction | None:
    match = _INSTRUCTION.match(line)
    assert match is not None
    start = match.end()
    is_tuple = line[start] == "("
    end = _closing(line, start) + 1 if is_tuple else line.index(" ", start)
    opcode = _OPCODE.match(line, end)
    if opcode is None:
        return None
    open_at = opcode.end() - 1
    close = _closing(line, open_at)
    inner = line[open_at + 1 : close]
    if opcode[1] in ("constant", "parameter", "iota"):
        operands: tuple[str, ...] = (inner.strip(),)
    else:
        inner = re.sub(r"/\*.*?\*/", "", inner)
        operands = tuple(re.findall(r"%([\w.\-]+)", inner)) or _bare(inner)
    arrays = tuple(_arrays(line[start:end]))
    rest = line[close + 1 :].lstrip(", ")
    return Instruction(
        match[2], opcode[1], arrays, operands, rest, bool(match[1]), is_tuple, computation
    )


def _bare(inner: str) -> tuple[str, ...]:
    """Operands in a dump without % signs: `f32[2] x, y`."""
    names = (part.split()[-1] for part in inner.split(",") if part.split())
    return tuple(name for name in names if re.fullmatch(r"[A-Za-z_][\w.\-]*", name))


def _arrays(text: str) -> Iterator[Array]:
    for match in _ARRAY.finditer(text):
        dims = tuple(int(n.lstrip("<=")) for n in match[2].split(",") if n)
        space = re.search(r"S\((\d+)\)", match[3] or "")
        yield Array(match[1], dims, int(space[1]) if space else HBM)
