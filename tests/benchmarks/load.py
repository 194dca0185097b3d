"""A lean client of an HTTP server: prepared requests, kept connections, each asking again as soon as it is answered.

A process of its own, so that its processor seconds are known: `python load.py PORT FOLDER CLIENTS SECONDS`.
"""

import asyncio
import itertools
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

END = b"\r\n\r\n"
LENGTH = b"\r\ncontent-length:"
LIMIT = 2**20


@dataclass
class Seen:
    """What the clients saw.

    Attributes:
        answers: start and end of each by `time.perf_counter()`, s.
        lost: connections that ended without an answer; a proxy that reads its configuration anew closes those it has.
        body: of the last answer.
    """

    answers: list[tuple[float, float]] = field(default_factory=list)
    lost: int = 0
    body: bytes = b""


async def client(port: int, requests: Iterator[bytes], seen: Seen, until: float) -> None:
    """Asks again and again over one connection, or the next one where it is lost."""
    while time.perf_counter() < until:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=LIMIT)
        try:
            while time.perf_counter() < until:
                started = time.perf_counter()
                writer.write(next(requests))
                head = (await reader.readuntil(END)).lower()
                seen.body = await reader.readexactly(int(head.partition(LENGTH)[2].partition(b"\r\n")[0]))
                if b" 200 " not in head[:16]:
                    raise RuntimeError(f"{head.decode()}{seen.body[:300].decode(errors='replace')}")
                seen.answers.append((started, time.perf_counter()))
        except (asyncio.IncompleteReadError, ConnectionError):
            seen.lost += 1
        finally:
            writer.close()


async def load(port: int, requests: list[bytes], clients: int, seconds: float) -> Seen:
    """Keeps some connections busy for a time."""
    seen, turns, until = Seen(), itertools.cycle(requests), time.perf_counter() + seconds
    await asyncio.gather(*(client(port, turns, seen, until) for _ in range(clients)))
    return seen


def main() -> None:
    port, folder, clients, seconds = sys.argv[1:]
    requests = [path.read_bytes() for path in sorted(Path(folder).iterdir())]
    began = time.process_time()
    seen = asyncio.run(load(int(port), requests, int(clients), float(seconds)))
    wall_s = max(end for _, end in seen.answers) - min(start for start, _ in seen.answers)
    took = {"latencies_s": [end - start for start, end in seen.answers], "wall_s": wall_s}
    print(json.dumps({**took, "cpu_s": time.process_time() - began, "lost": seen.lost}))


if __name__ == "__main__":
    main()
