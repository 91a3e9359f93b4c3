"""Executes the PTX of a Triton kernel for sm_90 on NumPy arrays: one value a thread, all threads in step.

So what the compiler made of a kernel gives numbers without a GPU: addresses, layouts, shuffles, masks, the ways that
results of the matrix unit take through shared memory and back. It stops at what a GPU would not forgive, a read in
shared memory of what another warp may not have written yet, say (see ptx_memory.py), and at what it does not know.
What ptxas makes of the PTX afterwards it cannot see.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from tests.triton.ptx_memory import ON_ITS_WAY, Fault, GlobalMemory, SharedMemory
from tests.triton.ptx_words import COLUMN, ROW, dtype_of, from_fragment, operand_words, to_bfloat16, to_float32

_INSTRUCTION = re.compile(r"(?:@(!?)(%p\d+)\s+)?([a-z][\w.:]*)\s*(.*?);")
_OPERAND = re.compile(r"\{[^}]*\}|\[[^\]]*\]|[^,\s][^,]*")
_ADDRESS = re.compile(r"\[\s*(%?\w+)\s*(?:\+\s*(-?\w+))?\s*\]")
_COMPARE: dict[str, Callable] = {
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
}  # fmt: skip
_FLOAT: dict[str, Callable] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "max": np.fmax, "min": np.fmin,
    "neg": np.negative, "abs": np.abs, "ex2": np.exp2, "sqrt": np.sqrt,
}  # fmt: skip
_INTEGER: dict[str, Callable] = {
    "add": np.add, "sub": np.subtract, "max": np.maximum, "min": np.minimum, "neg": np.negative, "abs": np.abs,
    "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor, "not": np.invert,
}  # fmt: skip


class Machine:
    """A kernel's PTX, to be run program by program."""

    def __init__(self, ptx: str, warps: int, shared: int, memory: GlobalMemory) -> None:
        self.warps, self.threads, self.size, self.memory = warps, 32 * warps, shared, memory
        self.warp_of = np.arange(self.threads) // 32
        self.chained = "griddepcontrol.wait" in ptx
        self.code: list[tuple[str | None, bool, list[str], list[str]]] = []
        self.labels: dict[str, int] = {}
        self.parameter_names = re.findall(r"\.param [^,\n]*?(\w+_param_\d+)", ptx)
        for raw in ptx[ptx.index("\n{") :].split("\n"):
            line = raw.split("//")[0].strip()
            if line.startswith("."):
                continue
            if line.startswith("$") and line.endswith(":"):
                self.labels[line[:-1]] = len(self.code)
            elif found := _INSTRUCTION.match(line):
                negated, guard, name, operands = found.groups()
                of = [operand.strip() for operand in _OPERAND.findall(operands)]
                self.code.append((guard, bool(negated), name.split("."), of))
            elif line not in ("", "{", "}"):
                raise Fault(f"a line that is not understood: {line}")

    def run(self, program: int, arguments: Iterable[int | float]) -> None:
        self.program = program
        self.parameters = dict(zip(self.parameter_names, arguments, strict=False))
        self.registers: dict[str, np.ndarray] = {}
        self.shared = SharedMemory(self.size, self.warps)
        self.products: list[tuple[set[str], list[np.ndarray]]] = [(set(), [])]  # groups not yet waited for; one is open
        self.copies: list[list[tuple]] = [[]]
        self.touched: set[str] = set()  # registers written since the last wgmma.fence
        self.early = self.chained  # the kernel before this one is not done yet
        at = 0
        while True:
            guard, negated, parts, operands = self.code[at]
            at += 1
            active = None
            if guard is not None:
                active = self.registers[guard] ^ negated
            if parts[0] in ("bra", "ret"):
                if active is not None and active.any() != active.all():
                    raise Fault("threads of a program go different ways")
                if active is None or active.all():
                    if parts[0] == "ret":
                        break
                    at = self.labels[operands[0]]
                continue
            if self.early and "global" in parts:
                raise Fault("memory is touched before the kernel in front is done with it")
            getattr(self, f"_{parts[0]}", self._arithmetic)(parts, operands, active)
        if any(registers for registers, _ in self.products) or any(self.copies):
            raise Fault("the kernel ends before what it asked for is there")

    # Operands

    def value(self, operand: str, dtype: np.dtype) -> np.ndarray:
        if operand[0] == "%":
            if operand == "%tid.x":
                return np.arange(self.threads, dtype=np.uint32).view(dtype)
            if operand == "%ctaid.x":
                return self.spread(self.program, dtype)
            if operand not in self.registers:  # undefined, and so is what comes of it
                return self.spread(0, dtype)
            if any(operand in registers for registers, _ in self.products):
                raise Fault(f"{operand} is read before the matrix unit is done with it")
            raw = self.registers[operand]
            if raw.dtype.itemsize > dtype.itemsize:  # conversions and stores may name a wider register
                raw = raw.astype(f"u{dtype.itemsize}")
            return raw.view(dtype)
        if operand == "global_smem":
            return self.spread(0, dtype)
        if operand[:2] == "0f":
            return np.full(self.threads, int(operand[2:], 16), np.uint32).view(dtype)
        return self.spread(int(operand.rstrip("U"), 0), dtype)

    def spread(self, number: float, dtype: np.dtype) -> np.ndarray:
        if dtype.kind == "f":
            return np.full(self.threads, number, dtype)
        if dtype.kind == "b":
            return np.full(self.threads, bool(number))
        raw = int(number) & ((1 << 8 * dtype.itemsize) - 1)
        return np.full(self.threads, raw, f"u{dtype.itemsize}").view(dtype)

    def put(self, register: str, value: np.ndarray, active: np.ndarray | None) -> None:
        if any(register in registers for registers, _ in self.products):
            raise Fault(f"{register} is written before the matrix unit is done with it")
        raw = np.ascontiguousarray(value)
        raw = raw if raw.dtype == bool else raw.view(f"u{raw.dtype.itemsize}")
        if active is not None and not active.all():
            before = self.registers.get(register, np.zeros_like(raw))
            raw = np.where(active, raw, before)
        self.registers[register] = raw
        self.touched.add(register)

    @staticmethod
    def names(operand: str) -> list[str]:
        return [name.strip() for name in operand.strip("{} ").split(",")]

    def addresses(self, operand: str, dtype: np.dtype) -> np.ndarray:
        found = _ADDRESS.fullmatch(operand)
        if found is None:
            raise Fault(f"an address that is not understood: {operand}")
        return self.value(found[1], dtype) + dtype.type(int(found[2] or "0", 0))

    # Arithmetic

    def _arithmetic(self, parts: list[str], operands: list[str], active: np.ndarray | None) -> None:
        operation, dtype, pairs = parts[0], dtype_of(parts[-1].removesuffix("x2")), parts[-1].endswith("x2")
        target, *of = operands
        values = [self.value(operand, np.dtype(np.uint32) if pairs else dtype).view(dtype) for operand in of]
        with np.errstate(all="ignore"):
            if dtype.kind == "f" and operation in _FLOAT:
                function = {"max": np.maximum, "min": np.minimum}[operation] if "NaN" in parts else _FLOAT[operation]
                result = function(*values)
            elif dtype.kind == "f" and operation == "fma":
                result = (values[0].astype(np.float64) * values[1] + values[2]).astype(dtype)
            elif dtype.kind == "f" and operation == "rcp":
                result = dtype.type(1) / values[0]
            elif dtype.kind != "f" and operation in _INTEGER:
                result = _INTEGER[operation](*values)
            else:
                raise Fault(f"an instruction that is not understood: {'.'.join(parts)}")
        self.put(target, result.view(np.uint32) if pairs else result, active)

    def _mul(self, parts: list[str], operands: list[str], active: np.ndarray | None) -> None:
        """Also of mad, which adds a third operand."""
        dtype = dtype_of(parts[-1])
        if dtype.kind == "f":
            return self._arithmetic(parts, operands, active)
        target, a, b, *more = operands
        which, wide = parts[1], np.dtype(f"{dtype.kind}{2 * dtype.itemsize}") if dtype.itemsize < 8 else dtype
        x, y = self.value(a, dtype), self.value(b, dtype)
        product = x * y if which == "lo" else x.astype(wide) * y.astype(wide)
        if which == "hi":
            if wide == dtype:
                raise Fault("the upper half of a product of 64 bits")
            product = (product >> (8 * dtype.itemsize)).astype(dtype)
        if more:
            product = product + self.value(more[0], product.dtype)
        self.put(target, product, active)
        return None

    _mad = _mul

    def _div(self, parts: list[str], operands: list[str], active: np.ndarray | None) -> None:
        dtype = dtype_of(parts[-1])
        if dtype.kind == "f":
            return self._arithmetic(parts, operands, active)
        x, y = (self.value(operand, dtype) for operand in operands[1:])
        quotient = np.abs(x) // np.abs(y) * np.sign(x) * np.sign(y) if dtype.kind == "i" else x // y
        result = x - quotient * y if parts[0] == "rem" else quotient
        return self.put(operands[0], result.astype(dtype), active)

    _rem = _div

    def _shl(self, parts: list[str], operands: list[str], active: np.ndarray | None) -> None:
        dtype = dtype_of(parts[-1])
        bits, by = 8 * dtype.itemsize, self.value(operands[2], np.dtype(np.uint32)).astype(np.int64)
        value, amount = self.value(operands[1], dtype), np.minimum(by, bits - 1).astype(dtype)
        shifted = value << amount if parts[0] == "shl" else value >> amount
        if dtype.kind == "u":
            shifted = np.where(by >= bits, dtype.type(0), shifted)
        self.put(operands[0], shifted, active)

    _shr = _shl

    def _bfe(self, parts: list[str], operands: list[str], active: np.ndarray | None) -> None:
        dtype = dtype_of(parts[-1])
        position, length = int(operands[2], 0), int(operands[3], 0)
        raw = np.dtype(f"u{dtype.itemsize}")
        bits = self.value(operands[1], raw) >> raw.type(position)
        left = 8 * dtype.itemsize - length
        up = (bits << raw.type(left)).view(dtype)
        self.put(operands[0], up >> dtype.type(left), active)

    def _selp(self, parts: list[str], operands: list[str], active: np.ndarray | None) -> None:
        dtype = dtype_of(parts[-1])
        a, b, predicate = self.value(operands[1], dtype), self.value(operands[2], dtype), operands[3]
        self.put(operands[0], np.where(self.value(predicate, np.dtype(bool)), a, b), active)

    def _setp(self, parts: list[str], operands: list[str], active: np.ndarray | None) -> None:
        dtype, comparison = dtype_of(parts[-1]), parts[1]
        a, b = (self.value(operand, dtype) for operand in operands[1:3])
        if comparison == "nan":
            result = np.isnan(a) | np.isnan(b)
        elif comparison in _COMPARE:
            result = _COMPARE[comparison](a, b)
            if comparison == "ne" and dtype.kind == "f":
                result &= ~(np.isnan(a) | np.isnan(b))
        else:  # eq and so on of floats, or not a number
            result = _COMPARE[comparison[:-1]](a, b) | np.isnan(a) | np.isnan(b)
        if len(operands) != 3:
            raise Fault(f"a comparison that is not understood: {'.'.join(parts)}")
        self.put(operands[0], result, active)

    def _mov(self, parts: list[str], operands: list[str], active: np.ndarray | None) -> None:
        target, source = operands
        dtype = np.dtype(bool) if parts[-1] == "pred" else np.dtype(f"u{int(parts[-1][1:]) // 8}")
        if source[0] == "{":
            low, high = (self.value(name, np.dtype(f"u{dtype.itemsize // 2}")) for name in self.names(source))
            self.put(target, np.stack([low, high], -1).view(dtype)[:, 0], active)
        elif target[0] == "{":
            halves = self.value(source, dtype)[:, None].view(f"u{dtype.itemsize // 2}")
            for name, half in zip(self.names(target), halves.T, strict=True):
                if name != "_":
                    self.put(name, half, active)
        else:
            self.put(target, self.value(source, dtype), active)

    def _cvt(self, parts: list[str], operands: list[str], active: np.ndarray | None) -> None:
        to, source = parts[-2], parts[-1]
        if source == "bf16":
            value = to_float32(self.value(operands[1], np.dtype(np.uint16)), "bf16")
        else:
            value = self.value(operands[1], dtype_of(source))
        if to in ("bf16x2", "f16x2"):
            value = np.stack([self.value(operands[2], np.dtype(np.float32)), value], -1)
        with np.errstate(all="ignore"):
            if to.startswith("bf16"):
                result = to_bfloat16(value)
            elif to.startswith("f16"):
                result = value.astype(np.float16).view(np.uint16)
            elif to == "tf32":  # to the nearest, ties away from zero
                result = ((value.view(np.uint32) + np.uint32(0x1000)) & np.uint32(0xFFFFE000)).view(np.float32)
            else:
                result = value.astype(dtype_of(to))
                if result.itemsize == 1:  # there are no registers so small
                    result = result.astype(f"{result.dtype.kind}2")
        self.put(operands[0], result.view(np.uint32)[:, 0] if to.endswith("x2") else result, active)

    def _prmt(self, parts: list[str], operands: list[str], active: np.ndarray | None) -> None:
        word = np.dtype(np.uint32)
        a, b = (self.value(operand, word)[:, None].view(np.uint8) for operand in operands[1:3])
        selector, pool = int(operands[3].rstrip("U"), 0), np.concatenate([a, b], 1)
        if selector & 0x8888:
            raise Fault("prmt of signs")
        taken = np.stack([pool[:, selector >> 4 * i & 7] for i in range(4)], -1)
        self.put(operands[0], taken.view(word)[:, 0], active)

    def _shfl(self, parts: list[str], operands: list[str], active: np.ndarray | None) -> None:
        if operands[3:] != ["31", "-1"] or active is not None:
            raise Fault("a shuffle of less than a warp")
        value, by = (self.value(operand, np.dtype(np.uint32)) for operand in operands[1:3])
        lanes = np.arange(self.threads) % 32
        source = {"bfly": lanes ^ by, "idx": by, "down": np.minimum(lanes + by, 31), "up": np.maximum(lanes - by, 0)}
        self.put(operands[0], value[32 * self.warp_of + source[parts[2]].astype(np.int64)], None)

    # Memory

    def _ld(self, parts: list[str], operands: list[str], active: np.ndarray | None) -> None:
        targets, source = operands[:2]
        names, dtype = self.names(targets), dtype_of(parts[-1])
        if parts[1] == "param":
            number = self.parameters[source.strip("[]")]
            value = self.spread(number, np.dtype(np.float32) if isinstance(number, float) else dtype)
            wider = targets.startswith("%rd") and dtype.itemsize < 8
            return self.put(targets, value.astype(f"{dtype.kind}8") if wider else value, active)
        here = np.ones(self.threads, bool) if active is None else active
        size = dtype.itemsize
        values = np.zeros((self.threads, len(names)), f"u{size}")
        if parts[1] == "shared" or parts[1].startswith("shared::"):
            where = self.addresses(source, np.dtype(np.uint32))[here]
            words = self.shared.read(where, size * len(names), self.warp_of[here])
            values[here] = np.ascontiguousarray(words).view(f"u{size}")
        else:
            where = self.addresses(source, np.dtype(np.uint64))[here]
            values[here] = self.memory.read(where, size, len(names))
        for name, value in zip(names, values.T, strict=True):
            self.put(name, value, active)
        return None

    def _st(self, parts: list[str], operands: list[str], active: np.ndarray | None) -> None:
        names, dtype = self.names(operands[1]), dtype_of(parts[-1])
        here = np.ones(self.threads, bool) if active is None else active
        values = np.stack([self.value(name, np.dtype(f"u{dtype.itemsize}"))[here] for name in names], -1)
        if parts[1] == "shared" or parts[1].startswith("shared::"):
            where = self.addresses(operands[0], np.dtype(np.uint32))[here]
            self.shared.write(where, values.view(np.uint16), self.warp_of[here])
        else:
            self.memory.write(self.addresses(operands[0], np.dtype(np.uint64))[here], values)

    def rows(self, operand: str, count: int) -> np.ndarray:
        """Addresses of the rows of `count` matrices of 8 x 8, (warps, count, 8)."""
        where = self.addresses(operand, np.dtype(np.uint32)).reshape(self.warps, 32)
        return where[:, : 8 * count].reshape(self.warps, count, 8)

    def _ldmatrix(self, parts: list[str], operands: list[str], active: np.ndarray | None) -> None:
        names = self.names(operands[0])
        where = self.rows(operands[1], len(names))
        warps = np.broadcast_to(np.arange(self.warps)[:, None, None], where.shape)
        matrices = self.shared.read(where, 16, warps)
        matrices = matrices.swapaxes(-1, -2) if "trans" in parts else matrices
        pairs = np.ascontiguousarray(matrices).reshape(self.warps, len(names), 64).view(np.uint32)
        for j, name in enumerate(names):
            self.put(name, pairs[:, j].reshape(-1), active)

    def _stmatrix(self, parts: list[str], operands: list[str], active: np.ndarray | None) -> None:
        names = self.names(operands[1])
        where = self.rows(operands[0], len(names))
        warps = np.broadcast_to(np.arange(self.warps)[:, None, None], where.shape)
        pairs = np.stack([self.value(name, np.dtype(np.uint32)).reshape(self.warps, 32) for name in names], 1)
        matrices = pairs.view(np.uint16).reshape(self.warps, len(names), 8, 8)
        self.shared.write(where, matrices.swapaxes(-1, -2) if "trans" in parts else matrices, warps)

    def _griddepcontrol(self, parts: list[str], operands: list[str], active: np.ndarray | None) -> None:
        if parts[1] == "wait":
            self.early = False
        elif self.early:
            raise Fault("the next kernel may come before the one in front is done")

    def _cp(self, parts: list[str], operands: list[str], active: np.ndarray | None) -> None:
        if parts[2] == "commit_group":
            self.copies.append([])
        elif parts[2] == "wait_group":
            self.arrive(int(operands[0]))
        elif parts[2] in ("ca", "cg"):
            here = np.ones(self.threads, bool) if active is None else active
            size = int(operands[2], 0)
            given = self.value(operands[3] if len(operands) > 3 else operands[2], np.dtype(np.uint32))
            if not np.isin(given[here], (0, size)).all():
                raise Fault("a copy of a part of its bytes")
            values = np.zeros((self.threads, size // 4), np.uint32)
            filled = here & (given == size)
            values[filled] = self.memory.read(self.addresses(operands[1], np.dtype(np.uint64))[filled], 4, size // 4)
            at = self.shared.indices(self.addresses(operands[0], np.dtype(np.uint32))[here], size)
            self.shared.claim(at, self.warp_of[here], ON_ITS_WAY)
            self.copies[-1].append((at, values[here].view(np.uint16), self.warp_of[here]))
        else:
            raise Fault(f"an instruction that is not understood: {'.'.join(parts)}")

    def arrive(self, left: int) -> None:
        """Copies land when they are waited for, and not before. wgmma sees them without a fence of its own."""
        *committed, open_ = self.copies
        late = len(committed) - left
        for group in committed[: max(late, 0)]:
            for at, values, warps in group:
                self.shared.put(at, values, warps)
        self.copies = [*committed[max(late, 0) :], open_]

    def _bar(self, parts: list[str], operands: list[str], active: np.ndarray | None) -> None:
        if parts[1] != "warp":
            if operands != ["0"] or active is not None:
                raise Fault("a barrier for some of the threads")
            self.shared.barrier()

    def _fence(self, parts: list[str], operands: list[str], active: np.ndarray | None) -> None:
        if parts[1:3] != ["proxy", "async"] and parts[1] != "proxy":
            raise Fault(f"an instruction that is not understood: {'.'.join(parts)}")
        self.shared.fence()

    # Products

    def _mma(self, parts: list[str], operands: list[str], active: np.ndarray | None) -> None:
        target, a, b, c = (self.names(operand) for operand in operands)
        dtype, word = parts[-3], np.dtype(np.uint32)
        left = from_fragment([self.value(name, word) for name in a], dtype)
        right = from_fragment([self.value(name, word) for name in b], dtype)
        start = np.stack([self.value(name, np.dtype(np.float32)) for name in c], -1).reshape(self.warps, 32, 4)
        product = left @ right.swapaxes(1, 2)
        for i, name in enumerate(target):
            value = product[:, ROW + 8 * (i // 2), 2 * COLUMN + i % 2] + start[:, :, i]
            self.put(name, value.reshape(-1), active)

    def _wgmma(self, parts: list[str], operands: list[str], active: np.ndarray | None) -> None:
        if parts[1] == "fence":
            self.touched.clear()
        elif parts[1] == "commit_group":
            self.products.append((set(), []))
        elif parts[1] == "wait_group":
            *committed, open_ = self.products
            late = max(len(committed) - int(operands[0]), 0)
            for _, read in committed[:late]:
                for at in read:
                    self.shared.done(at)
            self.products = [*committed[late:], open_]
        else:
            self.product(parts, operands)

    def product(self, parts: list[str], operands: list[str]) -> None:
        """D = A · Bᵀ + D of a group of four warps: 64 rows, A in registers or in shared memory."""
        target, a, b, add, *flags = operands
        names, dtype = self.names(target), parts[-1]
        columns = 2 * len(names)
        if [int(flag) for flag in flags[:2]] != [1, 1]:
            raise Fault("a negated operand of a product")
        transposed = [flag == "1" for flag in flags[2:]] or [False]  # TF32 never is
        of_a = self.names(a) if a[0] == "{" else []
        adds = self.value(add, np.dtype(bool))
        if self.touched & {*of_a, *(names if adds.any() else ())}:
            raise Fault("registers of a product were written after the last wgmma.fence")
        flying = self.products
        self.products = [(registers - set(names), read) for registers, read in flying]  # of the same accumulator
        start = np.stack([self.value(name, np.dtype(np.float32)) for name in names], -1).reshape(-1, 4, 32, len(names))
        start = np.where(adds.reshape(-1, 4, 32, 1), start, np.float32(0))
        if of_a:
            tile = from_fragment([self.value(name, np.dtype(np.uint32)) for name in of_a], dtype)
            left = tile.reshape(-1, 64, tile.shape[-1])
        result = np.empty_like(start)
        for group in range(self.warps // 4):
            rows = left[group] if of_a else self.operand(a, group, transposed[0], 64, dtype)
            right = self.operand(b, group, transposed[-1], columns, dtype)
            product = (rows @ right.T).reshape(4, 16, columns)
            for i in range(len(names)):
                across = 8 * (i // 4) + 2 * COLUMN + i % 2
                result[group, :, :, i] = product[:, ROW + 8 * (i // 2 % 2), across] + start[group, :, :, i]
        for i, name in enumerate(names):
            self.put(name, result[..., i].reshape(-1), None)
            self.touched.discard(name)
        self.products = flying
        self.products[-1][0].update(names)

    def operand(self, register: str, group: int, transposed: bool, rows: int, dtype: str) -> np.ndarray:
        descriptors = self.value(register, np.dtype(np.uint64))[128 * group : 128 * (group + 1)]
        if (descriptors != descriptors[0]).any():
            raise Fault("an operand's descriptor that differs between threads")
        at = operand_words(int(descriptors[0]), transposed, rows)
        self.products[-1][1].append(at)
        return to_float32(self.shared.operand(at), dtype)


def execute(ptx: str, warps: int, shared: int, programs: int, memory: GlobalMemory, arguments: Sequence[Any]) -> None:
    """Every program of a launch; `arguments` are those that the compiler left, pointers as addresses in `memory`."""
    machine = Machine(ptx, warps, shared, memory)
    if len(machine.parameter_names) < len(arguments):
        raise Fault(f"{len(arguments)} arguments for {len(machine.parameter_names)} parameters")
    for program in range(programs):
        machine.run(program, arguments)
