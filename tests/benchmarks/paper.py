"""A job of any size on paper. `python tests/benchmarks/paper.py` writes the tables of deploy/SCALING.md.

What the product decides (bytes of a block and of a read, rows of a part) is taken from the code.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from math import ceil
from pathlib import Path
from typing import Any

from pipeline.stream.parts import row_limit
from pipeline.stream.steps import BLOCK_BYTES
from pipeline.stream.storage import S3_DEFAULTS

DOCUMENT = Path(__file__).resolve().parents[2] / "deploy" / "SCALING.md"
GET_BYTES = int(S3_DEFAULTS["default_block_size"])
GPU_BATCH = 128
BLOCK_IMAGES = max(1, BLOCK_BYTES // (224 * 224 * 3 * GPU_BATCH)) * GPU_BATCH
PART_IMAGES = row_limit(7 * 7 * 2)
S3 = "S3's user guide"
JOBS = 200  # so that every driver has a third of its core to spare
PRICES = "S3's price list, us-east-1"


def constant(value: float, what: str, unit: str, source: str) -> Any:
    """A field with what the document says of it."""
    return field(default=value, metadata={"what": what, "unit": unit, "source": source})


@dataclass(frozen=True)
class Constants:
    """Measured of the tool, and published of others."""

    driver_ms: float = constant(17.5, "Ray Data's driver, a block: three tasks", "CPU ms", "`constants.py`")
    driver_bytes: float = constant(28_000, "the same, a shard", "B of memory", "`constants.py`")
    base_bytes: float = constant(1.0e9, "the driver itself", "B of memory", "[README](README.md#sizes)")
    list_ms: float = constant(0.36, "listing and plan, a shard", "CPU ms", "`constants.py`")
    list_bytes: float = constant(7_000, "the same", "B of memory", "`constants.py`")
    plan_bytes: float = constant(276, "`plan.json`, a shard", "B", "`constants.py`")
    survey_ms: float = constant(3.5, "asking what is committed, a shard", "CPU ms", "`constants.py`")
    survey_fragment_ms: float = constant(0.07, "the same, a fragment", "CPU ms", "`constants.py`")
    forget_ms: float = constant(0.15, "removing a fragment", "CPU ms", "`constants.py`")
    block_gets: float = constant(1, "GET of a block: its fragment, for sealing", "", "`constants.py`")
    block_puts: float = constant(1, "PUT of a block: its fragment", "", "`constants.py`")
    shard_puts: float = constant(1, "PUT of a shard: where it ends", "", "`constants.py`")
    shard_lists: float = constant(5, "LIST of a shard", "", "`constants.py`")
    fragment_bytes: float = constant(280, "fragment, an image", "B", "`constants.py`")
    part_bytes: float = constant(193, "explanations, an image", "B", "`constants.py`")
    seal_ms: float = constant(0.036, "sealing, an image", "CPU ms", "`constants.py`")
    decode_ms: float = constant(3.6, "decoding a photograph of 100 KB", "CPU ms", "`make bench`")
    put_limit: float = constant(3500, "PUT and DELETE, a prefix", "1/s", S3)
    get_limit: float = constant(5500, "GET and LIST, a prefix", "1/s", S3)
    pool_limit: float = constant(
        500,
        "actors over which Ray Data loses throughput",
        "",
        "[ray-project/ray#54790](https://github.com/ray-project/ray/issues/54790)",
    )
    get_price: float = constant(0.4, "a million GET", "$", PRICES)
    put_price: float = constant(5.0, "a million PUT or LIST", "$", PRICES)


@dataclass(frozen=True)
class Setting:
    """What is asked for.

    Attributes:
        images: to explain.
        gpus: one actor and one node of `cpus` each.
        rate: images/s of one GPU; assumed, `make bench` measures yours.
        image_bytes: encoded.
        shard_images: in one tar.
        jobs: that the input is split into, each with a driver, an output and its share of the GPUs.
        cpus: beside one GPU.
        gpu_price: $ an hour of such a node; assumed.
    """

    images: float = 1e9
    gpus: int = 1000
    rate: float = 1000
    image_bytes: float = 100_000
    shard_images: int = 10_000
    jobs: int = 1
    cpus: int = 7
    gpu_price: float = 1.0


@dataclass(frozen=True)
class Paper:
    """One setting, computed.

    Attributes:
        setting: of all jobs together.
        known: constants.
    """

    setting: Setting
    known: Constants = Constants()

    @property
    def shards(self) -> float:
        """Of one job."""
        return self.setting.images / self.setting.shard_images / self.setting.jobs

    @property
    def blocks(self) -> float:
        """Of one job, and as many fragments."""
        return self.shards * ceil(self.setting.shard_images / BLOCK_IMAGES)

    @property
    def gets(self) -> float:
        """Of one job for its input."""
        return self.shards * ceil(self.setting.shard_images * self.setting.image_bytes / GET_BYTES)

    @property
    def blocks_per_s(self) -> float:
        """Of one job whose GPUs are all busy."""
        return self.setting.gpus * self.setting.rate / BLOCK_IMAGES / self.setting.jobs

    @property
    def driver_cores(self) -> float:
        """That one driver needs for it."""
        return self.blocks_per_s * self.known.driver_ms / 1e3

    @property
    def busy_s(self) -> float:
        """Explaining, if every GPU is busy."""
        return self.setting.images / self.setting.gpus / self.setting.rate

    @property
    def stream_s(self) -> float:
        """Explaining; Ray Data's driver schedules in one thread and so has one core."""
        return self.busy_s * max(1.0, self.driver_cores)

    @property
    def images(self) -> float:
        """Of one job."""
        return self.setting.images / self.setting.jobs

    @property
    def input_rate(self) -> float:
        """Bytes/s of one job whose GPUs are all busy."""
        return self.blocks_per_s * BLOCK_IMAGES * self.setting.image_bytes

    @property
    def listing_s(self) -> float:
        """Listing the input."""
        return self.shards * self.known.list_ms / 1e3

    @property
    def survey_s(self) -> float:
        """Looking what is committed, when all is."""
        return (self.shards * self.known.survey_ms + self.blocks * self.known.survey_fragment_ms) / 1e3

    @property
    def seal_s(self) -> float:
        """Sealing, by all CPUs."""
        return self.setting.images * self.known.seal_ms / 1e3 / (self.setting.gpus * self.setting.cpus)

    @property
    def forget_s(self) -> float:
        """Removing the fragments."""
        return self.blocks * self.known.forget_ms / 1e3

    @property
    def total_s(self) -> float:
        """From the first request to the last; at the start a survey finds nothing."""
        start = self.listing_s + self.shards * self.known.survey_ms / 1e3
        return start + self.stream_s + self.survey_s + self.seal_s + self.forget_s

    @property
    def driver_bytes(self) -> float:
        """Memory of one driver."""
        return self.known.base_bytes + self.shards * (self.known.list_bytes + self.known.driver_bytes)

    @property
    def requests_price(self) -> float:
        """Of all jobs, in $."""
        known = self.known
        gets = self.gets + self.blocks * known.block_gets
        puts = self.blocks * known.block_puts + self.shards * (known.shard_puts + known.shard_lists)
        return (gets * known.get_price + puts * known.put_price) / 1e6 * self.setting.jobs

    @property
    def nodes_price(self) -> float:
        """Of all jobs, in $."""
        return self.setting.gpus * self.setting.gpu_price * self.total_s / 3600


def seconds(value: float) -> str:
    """For people."""
    for unit, length in (("days", 86_400), ("h", 3600), ("min", 60)):
        if value >= 2 * length:
            return f"{value / length:.3g} {unit}"
    return f"{value:.2g} s"


def amount(value: float, unit: str = "") -> str:
    """With a decimal prefix for bytes, in words for the rest."""
    steps = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")) if unit else ((1e9, " billion"), (1e6, " million"))
    for size, prefix in steps:
        if value >= size:
            return f"{value / size:.3g} {prefix}{unit}" if unit else f"{value / size:.3g}{prefix}"
    return f"{value:,.0f} {unit}".strip() if value >= 10 else f"{value:.2g} {unit}".strip()


Row = tuple[str, Callable[[Paper], str], str]
ROWS: list[Row] = [
    ("shards", lambda p: amount(p.shards), "images / images a shard"),
    ("blocks, and as many fragments", lambda p: amount(p.blocks), f"shards x ⌈images a shard / {BLOCK_IMAGES}⌉"),
    ("explaining, every GPU busy", lambda p: seconds(p.busy_s), "images / (GPUs x rate)"),
    ("blocks a second for that", lambda p: amount(p.blocks_per_s), f"GPUs x rate / {BLOCK_IMAGES}"),
    (
        "cores that the driver's one thread needs",
        lambda p: f"**{p.driver_cores:.2f}**" if p.driver_cores < 10 else f"**{p.driver_cores:.0f}**",
        "blocks a second x driver a block",
    ),
    ("explaining, as the driver can", lambda p: seconds(p.stream_s), "that x the cores, if over 1"),
    ("input", lambda p: amount(p.input_rate, "B/s"), "GPUs x rate x bytes of an image"),
    ("GET a second, input", lambda p: amount(p.input_rate / GET_BYTES), f"input / {GET_BYTES // 2**20} MiB"),
    (
        "PUT a second, fragments",
        lambda p: amount(p.blocks_per_s * p.known.block_puts),
        "blocks a second x PUT of a block",
    ),
    ("`plan.json`", lambda p: amount(p.shards * p.known.plan_bytes, "B"), "shards x its bytes"),
    ("driver's memory", lambda p: amount(p.driver_bytes, "B"), "itself + shards x (listing + Ray Data)"),
    ("listing", lambda p: seconds(p.listing_s), "shards x listing"),
    ("resuming, or looking at the end", lambda p: seconds(p.survey_s), "shards x asking + fragments x asking"),
    ("sealing", lambda p: seconds(p.seal_s), "images x sealing / CPUs"),
    ("removing fragments", lambda p: seconds(p.forget_s), "fragments x removing"),
    ("from start to end", lambda p: seconds(p.total_s), "the sum"),
    ("fragments", lambda p: amount(p.images * p.known.fragment_bytes, "B"), "images x fragment"),
    ("explanations", lambda p: amount(p.images * p.known.part_bytes, "B"), "images x explanation"),
    ("files of explanations", lambda p: amount(p.images / PART_IMAGES), f"images / {PART_IMAGES:,}"),
    ("requests, all jobs", lambda p: f"${p.requests_price:,.0f}", "GET, PUT, LIST x price"),
    ("nodes, all jobs", lambda p: f"${p.nodes_price:,.0f}", "GPUs x hours x price"),
]


def setting_table(*papers: Paper) -> str:
    """Every quantity of some settings side by side."""
    heads = [
        "one job"
        if p.setting.jobs == 1
        else f"each of {p.setting.jobs} jobs of {p.setting.gpus // p.setting.jobs} GPUs"
        for p in papers
    ]
    lines = [f"| | {' | '.join(heads)} | formula |", "| --- |" + " --- |" * (len(papers) + 1)]
    lines += [f"| {name} | {' | '.join(value(p) for p in papers)} | {formula} |" for name, value, formula in ROWS]
    return "\n".join(lines)


def constants_table(known: Constants) -> str:
    """What the quantities rest on."""
    lines = ["| constant | value | from |", "| --- | --- | --- |"]
    for item in fields(known):
        facts = item.metadata
        lines.append(f"| {facts['what']} | {getattr(known, item.name):,.10g} {facts['unit']} | {facts['source']} |")
    return "\n".join(lines)


def limits_table(setting: Setting, known: Constants) -> str:
    """What breaks, at how many GPUs in one job, and what to do."""
    limits = [
        (
            1e3 / known.driver_ms * BLOCK_IMAGES / setting.rate,
            "Ray Data's scheduling thread, in the driver",
            "several jobs, each with a part of the input",
        ),
        (
            known.put_limit * BLOCK_IMAGES / setting.rate / known.block_puts,
            "PUT of fragments to one prefix",
            "outputs below several prefixes, or in several buckets",
        ),
        (
            known.get_limit * GET_BYTES / (setting.rate * setting.image_bytes),
            "GET of input from one prefix",
            "input below several prefixes",
        ),
        (known.pool_limit, "Ray Data's pool of actors", "several jobs"),
    ]
    lines = ["| images/s | GPUs | breaks | remedy |", "| --- | --- | --- | --- |"]
    lines += [
        f"| {gpus * setting.rate:,.0f} | {gpus:,.0f} | {what} | {remedy} |" for gpus, what, remedy in sorted(limits)
    ]
    return "\n".join(lines)


def tables() -> dict[str, str]:
    """Every table of the document, by its mark."""
    known, one = Constants(), Setting()
    return {
        "paper": setting_table(Paper(one), Paper(Setting(jobs=JOBS))),
        "limits": limits_table(one, known),
        "constants": constants_table(known),
    }


def filled(text: str) -> str:
    """The document with its tables computed anew."""
    for mark, table in tables().items():
        text = re.sub(
            rf"(<!-- {mark} -->\n).*?(\n<!-- /{mark} -->)",
            lambda found, t=table: f"{found[1]}{t}{found[2]}",
            text,
            flags=re.S,
        )
    return text


if __name__ == "__main__":
    DOCUMENT.write_text(filled(DOCUMENT.read_text()))
