"""Explains tiny rows with a network that does almost nothing; prints the driver's memory. Arguments: rows, folder."""

import os
import sys
import threading
import time
from pathlib import Path

TESTS = str(Path(__file__).resolve().parents[1])
sys.path.insert(0, TESTS)
os.environ["PYTHONPATH"] = os.pathsep.join([TESTS, str(Path(__file__).parent)])

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from samples import job, jpeg

from pipeline.jobs.explain import explain

FILE_ROWS = 50_000


def main(rows: int, folder: Path) -> None:
    image = jpeg(0, height=8, width=8)
    for index in range(0, rows, FILE_ROWS):
        count = min(FILE_ROWS, rows - index)
        table = pa.table({"image": [image] * count, "id": [str(index + i) for i in range(count)]})
        (folder / "in").mkdir(exist_ok=True)
        pq.write_table(table, folder / "in" / f"{index:09d}.parquet", row_group_size=4096)
    ray.init(address="local", num_cpus=2, object_store_memory=300 * 2**20, include_dashboard=False, log_to_driver=False)
    process, peak, done = psutil.Process(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.2):
            peak[0] = max(peak[0], process.memory_info().rss)

    before = process.memory_info().rss
    threading.Thread(target=watch, daemon=True).start()
    started = time.perf_counter()
    spec = job(folder / "in", folder / "out", runner="ray", size=8, model="module:tiny:tiny", batch_size=512)
    record = explain(spec)
    done.set()
    assert record.images == rows
    seconds = time.perf_counter() - started
    mebibytes = peak[0] / 2**20, (peak[0] - before) / 2**20
    print(f"peak {mebibytes[0]:.0f} MiB, {mebibytes[1]:.0f} MiB over the start, {rows / seconds:.0f} rows/s")


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
