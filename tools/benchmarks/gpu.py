"""The battery of measurements for a GPU: the most important first, written as they come, continued where it ended."""

import argparse
import gc
import json
import os
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from tabulate import tabulate

from benchmarks.gpu_rows import Row, RowSkipped, rows_of, sizes

COLUMNS = ("row", "status", "ms", "images_per_s", "peak_mb", "tflops", "ceiling_share", "note")


@dataclass(frozen=True)
class Setting:
    """What numbers depend on besides the row: those of another setting do not count as measured."""

    card: str
    torch: str
    size: str

    @classmethod
    def of(cls, device: torch.device, size: str) -> "Setting":
        card = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine() + " CPU"
        return cls(card, torch.__version__, size)


class Rows:
    """What has been measured: a line of JSON for each row in `rows.jsonl`, and a table of them in `rows.md`."""

    def __init__(self, folder: Path, setting: Setting) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "rows.jsonl"
        self.table = folder / "rows.md"
        self.setting = setting
        self.found = {row["row"]: row for row in self._read() if row["setting"] == vars(setting)}

    def _read(self) -> Iterator[dict]:
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        for line in lines:
            try:
                yield json.loads(line)
            except json.JSONDecodeError:  # the machine stopped while it was written
                continue

    def add(self, row: dict) -> None:
        row = {**row, "setting": vars(self.setting)}
        self.found[row["row"]] = row
        # A line of its own, also after one that was cut off; one write, so that it is there or not.
        torn = self.path.exists() and self.path.stat().st_size and not self.path.read_bytes().endswith(b"\n")
        with self.path.open("ab", buffering=0) as file:
            file.write(b"\n" * bool(torn) + json.dumps(row).encode() + b"\n")
            os.fsync(file.fileno())
        beside = self.table.with_suffix(".tmp")
        beside.write_text(self.markdown())
        os.replace(beside, self.table)

    def markdown(self) -> str:
        cells = [[row.get(column) for column in COLUMNS] for row in self.found.values()]
        table = tabulate(cells, COLUMNS, "github", floatfmt=".3g", missingval="")
        return f"{self.setting.card}, PyTorch {self.setting.torch}, size {self.setting.size}\n\n{table}\n"


def gpu(args: argparse.Namespace) -> None:
    """Everything on a GPU, most important first; the same command again continues where it ended."""
    device = torch.device(args.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("--device must be a device of this machine, got cuda. Without a GPU use --device cpu.")
    battery = rows_of(device, sizes()[args.size])
    rows = Rows(Path(args.out), Setting.of(device, args.size))
    end = time.monotonic() + 60 * args.minutes
    left = [row for row in battery if (rows.found.get(row.name) or {"status": "again"})["status"] not in done(args)]
    print(f"{len(battery) - len(left)} of {len(battery)} rows are measured, {args.minutes:g} minutes for the others")
    while left and time.monotonic() < end:
        measured = measure(left.pop(0), rows.found)
        rows.add(measured)
        print(line_of(measured), flush=True)
        if measured["status"] == "failed" and not works(device):
            print(f"{device} does not compute any more; the same command again continues with the next row")
            break
    if left:
        print(f"left: {len(left)} rows, from {left[0].name!r} on; the same command again continues there")
    print(f"{rows.table}\n\n{rows.markdown()}")


def done(args: argparse.Namespace) -> tuple[str, ...]:
    return ("ok",) if args.again else ("ok", "failed", "left out")


def measure(row: Row, found: dict[str, dict]) -> dict:
    """The row with its numbers, or with the last line of its error."""
    start = time.perf_counter()
    result: dict = {"row": row.name}
    try:
        result |= {"status": "ok", **row.run(found)}
    except RowSkipped as reason:
        result |= {"status": "left out", "note": str(reason)}
    except Exception as error:
        lines = str(error).strip().splitlines() or ["no message"]
        result |= {"status": "failed", "note": f"{type(error).__name__}: {lines[-1]}"[:300]}
    gc.collect()  # models hang in cycles
    torch._dynamo.reset()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return result | {"seconds": round(time.perf_counter() - start, 1)}


def works(device: torch.device) -> bool:
    """Whether the device still computes: after some errors nothing does until the process ends."""
    try:
        return torch.ones(2, device=device).sum().item() == 2.0
    except RuntimeError:
        return False


def line_of(row: dict) -> str:
    numbers = [
        f"{row[name]:.3g} {unit}" for name, unit in (("ms", "ms"), ("images_per_s", "images/s")) if row.get(name)
    ]
    return "  ".join([row["status"].ljust(8), row["row"], *numbers, row.get("note") or ""]).rstrip()


def add_command(commands: argparse._SubParsersAction) -> Callable:
    """Adds the command and its options to the parser of `benchmark.py`."""
    command = commands.add_parser("gpu", help=gpu.__doc__)
    command.add_argument("--minutes", type=float, default=9.0, help="no row is begun after them")
    command.add_argument("--out", required=True, metavar="DIR", help="folder of rows.jsonl and rows.md")
    command.add_argument(
        "--size", choices=sorted(sizes()), default="full", help="small: seconds per row, also on a CPU"
    )
    command.add_argument("--again", action="store_true", help="measure rows again that failed or were left out")
    command.add_argument("--device", default="cuda")
    command.add_argument("--threads", type=int, default=1)
    command.set_defaults(run=gpu)
    return command
