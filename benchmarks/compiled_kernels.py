"""Compile every Triton kernel with every constexpr set for sm_80 and sm_90, without a GPU, and record what it takes.

`python benchmarks/compiled_kernels.py [FILE]` writes registers, stack (spills live there) and shared memory as JSON,
by default to `benchmarks/results/kernels-compiled.json`.
"""

import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ.pop("TRITON_INTERPRET", None)  # the interpreter's kernels cannot be compiled

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from maxent_grpo.kernels import triton_kernels as kernels
from maxent_grpo.kernels.triton_rows import SCALE_BLOCK, launch

WIDTHS = (7, 151936)
DTYPES = {"fp32": 4, "fp16": 2, "bf16": 2}
FLOATS = ("inner", "softcap", "scale", "slope")
PER_ROW = {"ids": "*i64", "keep": "*i1", "arrivals": "*i32"}
CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"


def signature(kernel: triton.JITFunction, dtype: str, constants: dict[str, object]) -> dict[str, str]:
    """Types of a kernel's arguments: logits and their gradient of `dtype`, rows in float32, sizes in 32 bits."""
    types = {}
    for name in kernel.arg_names:
        if name in constants:
            types[name] = "constexpr"
        elif name in ("logits", "out", "values"):
            types[name] = f"*{dtype}"
        elif name in PER_ROW:
            types[name] = PER_ROW[name]
        elif name in FLOATS:
            types[name] = "fp32"
        elif name.endswith("stride"):
            types[name] = "i64" if name == "batch_stride" else "i32"
        elif name in ("per_batch", "width", "count"):
            types[name] = "i32"
        else:
            types[name] = "*fp32"
    return types


def variants() -> list[tuple[str, triton.JITFunction, str, dict[str, object], int]]:
    """(name, kernel, dtype, constants, warps) of everything the package can launch."""
    found = []
    flags = (False, True)
    for dtype, width in itertools.product(DTYPES, WIDTHS):
        block, warps = launch(width)
        unit = {"column_stride": 1, "BLOCK": block}
        for capped in flags:
            constants = {**unit, "CAPPED": capped}
            both = {**constants, "out_column_stride": 1}
            found.append((f"gradient {width} capped={capped}", kernels.gradient_kernel, dtype, both, warps))
            for entropy in flags:
                chosen = {**both, "ENTROPY": entropy, **({} if entropy else {"entropies": None})}
                name = f"one pass {width} capped={capped} entropy={entropy}"
                found.append((name, kernels.one_pass_kernel, dtype, chosen, warps))
            for entropy, sequence in ((False, False), (True, False), (False, True)):
                absent = {} if entropy else {"entropies": None}
                absent |= {} if sequence else {"sums": None, "arrivals": None}
                chosen = {**constants, "ENTROPY": entropy, "SEQUENCE": sequence, **absent}
                name = f"log-probs {width} capped={capped} entropy={entropy} sequence={sequence}"
                found.append((name, kernels.logps_kernel, dtype, chosen, warps))
    found += [("scale", kernels.scale_kernel, dtype, {"BLOCK": SCALE_BLOCK}, 4) for dtype in DTYPES]
    return found


def resources(cubin: bytes) -> dict[str, int]:
    """Read registers a thread, bytes of stack a thread and of shared memory a program."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run(
            [CUOBJDUMP, "--dump-resource-usage", file.name], check=True, capture_output=True, text=True
        ).stdout
    return {name: int(re.search(rf"{name}:(\d+)", text)[1]) for name in ("REG", "STACK", "SHARED", "LOCAL")}


def compiled(architectures: tuple[int, ...] = (80, 90)) -> list[dict[str, object]]:
    """Every variant's resources on every architecture."""
    table = []
    for architecture, (name, kernel, dtype, constants, warps) in itertools.product(architectures, variants()):
        types = signature(kernel, dtype, constants)
        places = {(kernel.arg_names.index(key),): value for key, value in constants.items()}
        aligned = {
            (place,): [["tt.divisibility", 16]] for place, kind in enumerate(types.values()) if kind.startswith("*")
        }
        source = ASTSource(fn=kernel, signature=types, constexprs=places, attrs=aligned)
        binary = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options={"num_warps": warps})
        used = resources(binary.asm["cubin"])
        table.append(
            {
                "kernel": name,
                "dtype": dtype,
                "sm": architecture,
                "warps": warps,
                "registers": used["REG"],
                "stack_bytes": used["STACK"] + used["LOCAL"],
                "shared_bytes": binary.metadata.shared,
            }
        )
    return table


if __name__ == "__main__":
    to = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "results/kernels-compiled.json"
    rows = compiled()
    to.write_text(
        json.dumps({"triton": triton.__version__}, indent=None)[:-1]
        + ',\n "compiled": [\n  '
        + ",\n  ".join(json.dumps(row) for row in rows)
        + "\n ]}\n"
    )
    worst = max(rows, key=lambda row: row["registers"])
    print(f"{len(rows)} variants; most registers: {worst}; stack: {max(row['stack_bytes'] for row in rows)} bytes")
