from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import engine.checkpoint

PROBE = """
import sys
from importlib import import_module
from pathlib import Path
from support.checkpoints import tiny_config, write_checkpoint

names = sys.argv[2:]
for name in names:
    import_module(f"engine.checkpoint.{name}")
from engine.checkpoint.loader import load_checkpoint
from engine.checkpoint.packing import pack_checkpoint

work = Path(sys.argv[1])
pack_checkpoint(write_checkpoint(work / "m", tiny_config(), dtype="bf16"), work / "p")
with load_checkpoint(work / "p") as checkpoint:
    checkpoint.linear(0, "q_proj")
print(len(names), sorted(set(sys.modules) & {"torch", "transformers", "ml_dtypes"}))
"""


def test_nothing_here_imports_torch(tmp_path: Path) -> None:
    (folder,) = engine.checkpoint.__path__
    modules = sorted(file.stem for file in Path(folder).glob("*.py") if file.stem != "__init__")
    root, tests = Path(folder).parents[1], Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", PROBE, str(tmp_path), *modules],
        env={"PYTHONPATH": f"{root}:{tests}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"{len(modules)} []"
