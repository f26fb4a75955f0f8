"""Every Triton kernel compiles for sm_80 and sm_90 with every constexpr set and block, and leaves an SM full."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is published for Linux only")

SCRIPT = Path(__file__).parents[2] / "benchmarks/compiled_kernels.py"


@pytest.mark.slow
def test_every_kernel_compiles_offline_and_fills_an_sm_without_spilling_a_block(tmp_path: Path) -> None:
    table = tmp_path / "compiled.json"
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    subprocess.run([sys.executable, str(SCRIPT), "--part", str(table)], check=True, env=environment)
    entries = json.loads(table.read_text())["compiled"]
    assert {entry["sm"] for entry in entries} == {80, 90}
    assert {entry["kernel"] for entry in entries} == {"logps_kernel", "gradient_kernel", "scale_kernel"}
    for entry in entries:
        assert max(entry["stack_bytes"].values()) <= 32, entry  # a few spilt scalars; a block would take 64 and more
        assert max(entry["shared_bytes"].values()) <= 1024, entry
        # A quarter of an SM at least, one program of 16 warps: 128 registers a thread; with more, none would fit.
        assert min(entry["resident_threads"].values()) >= 512, entry
