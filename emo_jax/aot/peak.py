"""Which buffers of a compiled program make up its peak of main memory.

The program's text is its schedule. A buffer lives from the instruction that creates it to the last
one that reads it or a view of it; loops work in place. This is an estimate: the compiler shares and
moves buffers in ways that the text does not show, and its own total is the one to trust.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from emo_jax.aot.hlo import HBM, Computation, Instruction, Program
from emo_jax.aot.traffic import VIEWS, is_continued

# Opcodes whose results are their operands, or a part of them.
_PASSED = {"tuple", "while", "optimization-barrier", "opt-barrier", "add-dependency", "domain"}
_NO_READ = {"tuple"}
_OUTSIDE = {"parameter", "constant"}


@dataclass(frozen=True)
class Buffer:
    """An array in main memory at the time of the peak."""

    bytes: int
    dtype: str
    dims: tuple[int, ...]
    op_name: str
    instruction: str

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.dims))}]"


@dataclass(frozen=True)
class Peak:
    """The temporaries that are live at the peak."""

    bytes: int
    buffers: tuple[Buffer, ...]  # largest first


def find_peak(program: Program) -> Peak:
    """The peak of the whole program, not counting its arguments."""
    return _Peaks(program).of(program.entry)


class _Peaks:
    def __init__(self, program: Program):
        self._program = program
        self._known: dict[str, Peak] = {}

    def of(self, computation: Computation) -> Peak:
        """The peak of the buffers that a computation creates itself."""
        if computation.name not in self._known:
            self._known[computation.name] = _Liveness(computation, self).peak
        return self._known[computation.name]

    def inside(self, instruction: Instruction) -> Peak | None:
        """The peak inside the body of a loop or call."""
        bodies = [
            self.of(self._program.computations[name])
            for name in (instruction.calls if instruction.opcode != "fusion" else ())
        ]
        return max(bodies, key=lambda p: p.bytes, default=None)

    def in_place(self, fusion: Instruction) -> str | None:
        """The operand that a fusion updates in place and returns."""
        root = self._program.computations[fusion.calls[0]].root
        while root.opcode in VIEWS:
            root = root.operand(0)
        if root.opcode != "dynamic-update-slice":
            return None
        base = root.operand(0)
        while base.opcode in VIEWS:
            base = base.operand(0)
        if base.opcode != "parameter":
            return None
        return fusion.operands[int(base.operands[0])]

    def given_back(self, fusion: Instruction) -> dict[int, int]:
        """Index of a result -> index of the operand that it is."""
        body = self._program.computations[fusion.calls[0]]
        if body.root.opcode != "tuple" or len(body.root.operands) != len(fusion.arrays):
            return {}
        found: dict[int, int] = {}
        for i, array in enumerate(fusion.arrays):
            made = body.root.operand(i)
            if made.opcode == "parameter":
                found[i] = int(made.operands[0])
            elif is_continued(made):  # writes into the buffer allocated when it was started
                same = [n for n, p in enumerate(body.parameters) if p.arrays == (array,)]
                if same:
                    found[i] = same[0]
        return found


class _Liveness:
    def __init__(self, computation: Computation, peaks: _Peaks):
        self._computation, self._peaks = computation, peaks
        self._order = list(computation.instructions.values())
        # Leaves of each instruction: names of the buffers that they are.
        self._leaves: dict[str, list[str]] = {}
        self._made: dict[str, Buffer] = {}

    @cached_property
    def peak(self) -> Peak:
        last: dict[str, int] = {}
        births: dict[int, list[str]] = {}
        for i, instruction in enumerate(self._order):
            births[i] = list(self._define(instruction))
            if instruction.opcode not in _OUTSIDE | _NO_READ | VIEWS:
                for name in instruction.operands:
                    last |= dict.fromkeys(self._leaves.get(name, ()), i)
            for buffer in births[i]:
                last[buffer] = max(i, last.get(buffer, i))
        root = self._computation.root
        for buffer in self._leaves.get(root.name, ()):  # the result outlives the computation
            last[buffer] = len(self._order)
        return self._sweep(births, last)

    def _sweep(self, births: dict[int, list[str]], last: dict[str, int]) -> Peak:
        alive: dict[str, Buffer] = {}
        now, best = 0, Peak(0, ())
        deaths: dict[int, list[str]] = {}
        for buffer, end in last.items():
            deaths.setdefault(end, []).append(buffer)
        for i, instruction in enumerate(self._order):
            for name in births[i]:
                alive[name] = self._made[name]
                now += self._made[name].bytes
            inner = self._peaks.inside(instruction)
            total = now + (inner.bytes if inner else 0)
            if total > best.bytes:
                buffers = [*alive.values(), *(inner.buffers if inner else ())]
                buffers.sort(key=lambda b: -b.bytes)
                best = Peak(total, tuple(buffers[:40]))
            for name in deaths.get(i, ()):
                if name in alive:
                    now -= alive.pop(name).bytes
        return best

    def _define(self, instruction: Instruction) -> Iterator[str]:
        """Records which buffers an instruction's leaves are; yields those that it creates."""
        opcode, name = instruction.opcode, instruction.name
        if opcode in _OUTSIDE:
            self._leaves[name] = [f"{name}:{i}!" for i in range(len(instruction.arrays))]
            return
        if opcode in _PASSED:
            self._leaves[name] = [b for o in instruction.operands for b in self._leaves.get(o, [])]
            return
        operand = instruction.operands[0] if instruction.operands else ""
        if opcode == "get-tuple-element":
            self._leaves[name] = self._element(instruction)
            return
        if opcode in VIEWS or opcode == "dynamic-update-slice" or opcode.endswith("-done"):
            known = self._leaves.get(operand, [])
            n = len(instruction.arrays)
            # The result of a start is its last buffer, not counting synchronisation flags.
            self._leaves[name] = known[:n] if not opcode.endswith("-done") else known
            return
        if opcode == "fusion":
            base = self._peaks.in_place(instruction)
            if base is not None and len(instruction.arrays) == 1:
                self._leaves[name] = self._leaves.get(base, [])
                return
        passed = self._passed_on(instruction) if opcode == "fusion" else {}
        leaves: list[str] = []
        # Asynchronous starts and updates return their operands ahead of their result.
        beside = opcode == "send" or opcode.endswith(("-start", "-update"))
        repeated = instruction.operand_arrays() if beside else []
        for i, array in enumerate(instruction.arrays):
            key = f"{name}:{i}"
            leaves.append(passed.get(i, key))
            if i in passed:
                continue
            if array in repeated:
                repeated.remove(array)
                continue
            if array.space == HBM and array.bytes:
                self._made[key] = Buffer(
                    array.bytes, array.dtype, array.dims, instruction.op_name, name
                )
                yield key
        self._leaves[name] = leaves

    def _passed_on(self, fusion: Instruction) -> dict[int, str]:
        """Results of a fusion, by index, that are buffers it was given.

        For example, those of a gather that runs concurrently.
        """
        passed: dict[int, str] = {}
        for i, made in self._peaks.given_back(fusion).items():
            leaves = self._leaves.get(fusion.operands[made], [])
            if len(leaves) == 1:
                passed[i] = leaves[0]
        return passed

    def _element(self, instruction: Instruction) -> list[str]:
        source = instruction.operand(0)
        leaves = self._leaves.get(source.name, [])
        index = int(instruction.attribute("index") or 0)
        if len(leaves) == len(source.arrays) and len(instruction.arrays) == 1:
            return leaves[index : index + 1]
        return leaves
