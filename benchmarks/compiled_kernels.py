"""Compile, without a GPU, every Triton kernel that the package can launch on sm_80 and sm_90; record what it takes.

`python benchmarks/compiled_kernels.py [--part] [FILE]` writes registers, stack (spills live there), shared memory and
resident threads as JSON, by default to `benchmarks/results/kernels-compiled.json`.

The package's own functions are called on tensors without memory, with a driver that only compiles. So Triton itself
decides what it specialises: an argument that is None or 1 becomes a constexpr, a pointer or a size that is a multiple
of 16 is compiled as one, a stride beyond 2³¹ as 64 bits. `--part` compiles one specialisation, at random but always
the same, of every kernel, constexpr set and block; architectures take turns over the blocks.
"""

import argparse
import itertools
import json
import os
import random
import re
import subprocess
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

os.environ.pop("TRITON_INTERPRET", None)  # the interpreter's kernels cannot be compiled

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from maxent_grpo.kernels import _triton_rows as triton_rows
from maxent_grpo.kernels._rows import LogitMap
from maxent_grpo.kernels._triton_rows import SCALE_BLOCK, choose_launch, count_lanes

RESULTS = Path(__file__).parent / "results/kernels-compiled.json"
CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
ARCHITECTURES = (80, 90)
BLOCKS = sorted({choose_launch(1 << power).block for power in range(20)})
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
IDS = {"int64": torch.int64, "int32": torch.int32}
ROWS = ("rows", "rows unaligned", "one row")
FAR = ("rows beyond 2^31",)
COLUMNS = ("columns", "columns unaligned")
OPERATIONS = ("log-probs", "log-probs entropy", "sequences", "gradient")


class Case(NamedTuple):
    """One call of a row function."""

    sm: int
    block: int
    operation: str
    capped: bool
    dtype: str
    ids: str
    layout: str
    inplace: bool = True

    @property
    def lanes(self) -> int:
        """Columns that a thread loads at once."""
        return count_lanes(build_logits(self))


def list_cases() -> Iterator[Case]:
    """Yield every call. A soft cap is the LM head's, whose chunk of logits is contiguous and below 2³¹ elements."""
    for sm, operation, dtype, ids in itertools.product(ARCHITECTURES, OPERATIONS, DTYPES, IDS):
        yield from list_row_cases(sm, operation, dtype, ids)
    for sm, dtype, layout in itertools.product(ARCHITECTURES, DTYPES, ROWS[:2]):
        yield Case(sm, SCALE_BLOCK, "scale", False, dtype, "", layout)


def list_row_cases(sm: int, operation: str, dtype: str, ids: str) -> Iterator[Case]:
    """Yield the calls of one operation, over blocks and layouts."""
    for block in BLOCKS:
        narrow = ("one column",) if block == BLOCKS[0] else ()
        for layout in ROWS + narrow:
            yield Case(sm, block, operation, True, dtype, ids, layout)
        for layout in ROWS + narrow + FAR + COLUMNS:
            yield Case(sm, block, operation, False, dtype, ids, layout)
            if layout in COLUMNS and operation == "gradient":
                yield Case(sm, block, operation, False, dtype, ids, layout, inplace=False)


def choose_part(every: Iterator[Case]) -> list[Case]:
    """Choose one case of each block and constexpr set; of the widest block, which vocabularies take, all four kinds.

    A kind is an architecture with loads of one element or of 16 bytes: over the other blocks they take turns.
    """
    groups = defaultdict(list)
    for case in every:
        groups[case.operation, case.capped, case.block, case.sm, case.lanes > 1].append(case)
    kinds = list(itertools.product(ARCHITECTURES, (False, True)))
    chosen = []
    for (operation, capped, block, *kind), group in groups.items():
        turn = kinds[BLOCKS.index(block) % len(kinds)]
        if block == BLOCKS[-1] or operation == "scale" or tuple(kind) == turn:
            chosen.append(random.Random(str((operation, capped, block, kind))).choice(group))
    return chosen


def build_logits(case: Case) -> Tensor:
    """Return logits `[B, T, V]` without memory, in the case's layout."""
    width, dtype = case.block, DTYPES[case.dtype]

    def lay_out(batch: int, tokens: int, width: int, offset: int = 0) -> Tensor:
        flat = torch.empty(batch * tokens * width + offset, dtype=dtype, device="meta")[offset:]
        if case.layout in COLUMNS:
            return flat.view(batch, width, tokens).mT
        return flat.view(batch, tokens, width)

    if case.layout.endswith("unaligned"):
        return lay_out(2, 3, width - 1, offset=1)
    if case.layout == "one row":
        return lay_out(2, 1, width)
    if case.layout == "one column":
        return lay_out(2, 16, 1)
    return lay_out(2, (1 << 31) // width + 16 if case.layout in FAR else 16, width)


def call_operation(case: Case) -> None:
    """Call the row function as the operations do."""
    logits = build_logits(case)
    rows, offset = logits.shape[:-1].numel(), int(case.layout.endswith("unaligned"))
    if case.operation == "scale":
        triton_rows.scale_(logits, torch.empty((), device="meta"))
        return
    ids = torch.empty(rows + offset, dtype=IDS[case.ids], device="meta")[offset:]
    keep = torch.empty(rows + offset, dtype=torch.bool, device="meta")[offset:]
    factor = torch.empty(rows + offset, device="meta")[offset:]
    logit_map = LogitMap(softcap=30.0 if case.capped else None)
    out = logits if case.inplace else torch.empty_like(logits, memory_format=torch.contiguous_format)
    entropy = case.operation.endswith("entropy")
    if case.operation.startswith("log-probs"):
        triton_rows.score_rows(logits, ids, keep, logit_map, entropy=entropy)
    elif case.operation == "sequences":
        triton_rows.score_sequences(logits, ids, keep, logit_map)
    else:
        triton_rows.write_row_gradient(logits, ids, torch.empty(rows, 2, device="meta"), factor, logit_map, out)


class Offline:
    """A driver without a device. Its number is the architecture, by which Triton keeps what it has compiled."""

    def __init__(self, sm: int) -> None:
        self._sm = sm

    def get_current_device(self) -> int:
        return self._sm

    def get_current_stream(self, _: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self._sm, 32)


def compile_case(case: Case) -> dict[str, object]:
    """Compile what the case launches; return the resources of its one kernel."""
    launches = []
    run = JITFunction.run

    def compile_only(kernel: JITFunction, *args: object, grid: object, warmup: bool, **more: object) -> None:
        del warmup
        launches.append((kernel.fn.__name__, more, run(kernel, *args, grid=grid, warmup=True, **more)))
        kernel.device_caches.clear()  # or every kernel's texts stay in memory

    triton.runtime.driver.set_active(Offline(case.sm))
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TRITON_CACHE_DIR"] = cache
        JITFunction.run = compile_only
        try:
            call_operation(case)
        finally:
            JITFunction.run = run
    ((name, constants, binary),) = launches
    assert constants["BLOCK"] == case.block, (case, constants)
    warps = binary.metadata.num_warps
    usage = read_resources(binary.asm["cubin"])
    return {
        "kernel": name,
        "constexprs": [flag for flag, value in constants.items() if value is True],
        "lanes": case.lanes,
        **case._asdict(),
        "registers": usage["REG"],
        "stack_bytes": usage["STACK"] + usage["LOCAL"],
        "shared_bytes": binary.metadata.shared,
        "resident_threads": count_resident_threads(usage["REG"], warps),
    }


def read_resources(cubin: bytes) -> dict[str, int]:
    """Return the registers and the bytes of stack that a thread takes, as cuobjdump reads them."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run(
            [CUOBJDUMP, "--dump-resource-usage", file.name], check=True, capture_output=True, text=True
        ).stdout
    return {name: int(re.search(rf"{name}:(\d+)", text)[1]) for name in ("REG", "STACK", "LOCAL")}


def count_resident_threads(registers: int, warps: int) -> int:
    """Count the threads that an SM of sm_80 or sm_90 holds at once, in at most 32 programs and 64 warps.

    Each of its 4 partitions has 16384 registers, which a warp takes 256 at a time.

    >>> [count_resident_threads(registers, warps) for registers, warps in ((64, 16), (65, 16), (64, 1))]
    [1024, 512, 1024]
    """
    registers_per_warp = -(-registers * 32 // 256) * 256
    return 32 * warps * min(32, min(64, 4 * (16384 // registers_per_warp)) // warps)


def summarize_kernels(rows: list[dict[str, object]]) -> list[dict[str, object]]:
    """Return one entry per kernel, constexpr set, dtype, lanes and architecture: its worst case at each block."""
    groups = defaultdict(list)
    for row in rows:
        groups[row["kernel"], *row["constexprs"], row["dtype"], row["lanes"], row["sm"]].append(row)
    entries = []
    for group in groups.values():
        by_block = defaultdict(list)
        for row in group:
            by_block[row["block"]].append(row)
        entries.append(
            {name: group[0][name] for name in ("kernel", "constexprs", "dtype", "lanes", "sm")}
            | {name: sorted({row[name] for row in group}) for name in ("ids", "layout")}
            | {"variants": len(group)}
            | {
                name: {block: worst(row[name] for row in group) for block, group in sorted(by_block.items())}
                for name, worst in (
                    ("registers", max),
                    ("stack_bytes", max),
                    ("shared_bytes", max),
                    ("resident_threads", min),
                )
            }
        )
    return entries


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", action="store_true")
    parser.add_argument("file", nargs="?", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    cases = choose_part(list_cases()) if arguments.part else list(list_cases())
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        rows = list(pool.map(compile_case, cases, chunksize=8))
    lines = ",\n  ".join(json.dumps(entry) for entry in summarize_kernels(rows))
    head = f'"triton": "{triton.__version__}", "specialisations": {len(rows)}, "part": {json.dumps(arguments.part)}'
    arguments.file.write_text(f'{{{head},\n "compiled": [\n  {lines}\n ]}}\n')
    worst = min(rows, key=lambda row: row["resident_threads"])
    stack = max(row["stack_bytes"] for row in rows)
    print(f"{len(rows)} kernels; largest stack: {stack} bytes; fewest resident threads: {worst}")


if __name__ == "__main__":
    main()
