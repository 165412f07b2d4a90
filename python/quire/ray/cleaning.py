"""A corpus from raw files to token ids, on Ray Data: read, normalise, drop exact duplicates, filter by length,
tokenise, write.

    from quire.ray.cleaning import Cleaning, clean

    report = clean(Cleaning(inputs=["raw/*.jsonl.gz"], output="clean/", tokenizer="path/to/checkpoint"))

The unit of work is a part: a few thousand documents in one Parquet file. A stage is a function from a part's file in
one folder to its file in the next; a file appears whole (written beside, then renamed) or not at all, and one that is
there is not made again. So whatever is killed - a worker, a node, this program - starting the same command again
finishes the rest, with the result of an undisturbed run. `output` must be a folder that every node sees.
"""

from __future__ import annotations

import functools
import glob
import gzip
import hashlib
import json
import os
import re
import unicodedata
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray.data

from quire.tokenizer import Tokenizer

STAGES = ("read", "normalise", "unique", "length", "tokenise")


@dataclass(frozen=True)
class Cleaning:
    """What to do. Characters are Unicode code points."""

    inputs: Sequence[str]  # paths or patterns: .jsonl, .jsonl.gz, .parquet (a text column), .txt (a document each)
    output: str  # part-*.parquet with id, text, token_ids; the stages' folders in .stages
    tokenizer: str  # a checkpoint's folder or .gguf file
    text_column: str = "text"
    min_chars: int = 50
    max_chars: int = 1_000_000
    rows_per_part: int = 5_000
    duplicate_buckets: int = 16  # digests are compared bucket by bucket: memory is that of one bucket

    def __post_init__(self) -> None:
        for name in ("rows_per_part", "duplicate_buckets"):
            if not getattr(self, name) > 0:
                raise ValueError(f"Cleaning: {name} must be positive, got {getattr(self, name)}")
        if not 0 <= self.min_chars <= self.max_chars:
            raise ValueError(f"Cleaning: 0 <= min_chars <= max_chars, got {self.min_chars} and {self.max_chars}")


@dataclass(frozen=True)
class Report:
    """Documents that each stage let through, and the tokens written."""

    documents: dict[str, int]
    tokens: int
    parts: int


# ---- Files that are whole or not there ----


def _write_table(path: Path, table: pa.Table) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    pq.write_table(table, beside, compression="zstd")
    with open(beside, "rb") as file:
        os.fsync(file.fileno())
    os.replace(beside, path)


def _write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    beside.write_text(json.dumps(value, indent=1, sort_keys=True), encoding="utf-8")
    os.replace(beside, path)


# ---- The stages, each on one file ----


def _texts_of(path: str, column: str) -> Iterator[str]:
    if path.endswith(".parquet"):
        for batch in pq.ParquetFile(path).iter_batches(columns=[column]):
            yield from (value or "" for value in batch.column(0).to_pylist())
    elif path.endswith(".txt"):
        yield Path(path).read_text(encoding="utf-8")
    else:
        opened = gzip.open(path, "rt", encoding="utf-8") if path.endswith(".gz") else open(path, encoding="utf-8")
        with opened as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield _text_of_line(path, number, line, column)


def _text_of_line(path: str, number: int, line: str, column: str) -> str:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: line {number}: not JSON: {error}") from error
    text = value.get(column) if isinstance(value, dict) else None
    if not isinstance(text, str):
        raise ValueError(f"{path}: line {number}: no string {column!r}")
    return text


def read_file(number: int, path: str, folder: Path, config: Cleaning) -> int:
    """One input file into parts; the last thing written is the list of them."""
    ids: list[str] = []
    texts: list[str] = []
    parts = 0

    def flush() -> None:
        nonlocal parts
        _write_table(folder / f"{number:05d}-{parts:05d}.parquet", pa.table({"id": ids, "text": texts}, _SCHEMA))
        parts += 1
        ids.clear()
        texts.clear()

    for row, text in enumerate(_texts_of(path, config.text_column)):
        ids.append(f"{os.path.basename(path)}:{row}")
        texts.append(text)
        if len(ids) == config.rows_per_part:
            flush()
    if ids:
        flush()
    _write_json(folder / f"{number:05d}.json", {"path": path, "parts": parts})
    return parts


_SCHEMA = pa.schema([("id", pa.string()), ("text", pa.string())])
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufeff]")
_TRAILING = re.compile(r"[^\S\n]+$", re.MULTILINE)
_BLANKS = re.compile(r"\n{3,}")


def normalise_text(text: str) -> str:
    """NFC, line ends as \\n, no control characters, no white space at line ends, at most one empty line in a row."""
    text = unicodedata.normalize("NFC", text).replace("\r\n", "\n").replace("\r", "\n")
    return _BLANKS.sub("\n\n", _TRAILING.sub("", _CONTROL.sub("", text))).strip("\n")


def normalise_part(source: Path, target: Path) -> None:
    table = pq.read_table(source)
    texts = [normalise_text(text) for text in table.column("text").to_pylist()]
    digests = [hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest() for text in texts]
    columns = {"id": table.column("id"), "text": texts, "digest": pa.array(digests, pa.binary(16))}
    _write_table(target, pa.table(columns))


def find_duplicates(bucket: int, folder: Path, parts: Sequence[str], target: Path, buckets: int) -> None:
    """The rows of one bucket of digests that repeat an earlier document: the first in the order of parts stays."""
    seen: set[bytes] = set()
    part_of: list[str] = []
    row_of: list[int] = []
    for part in parts:
        digests = pq.read_table(folder / f"{part}.parquet", columns=["digest"]).column("digest").to_pylist()
        for row, digest in enumerate(digests):
            if digest[0] % buckets != bucket:
                continue
            if digest in seen:
                part_of.append(part)
                row_of.append(row)
            seen.add(digest)
    _write_table(target, pa.table({"part": pa.array(part_of, pa.string()), "row": pa.array(row_of, pa.int64())}))


def drop_duplicates(part: str, source: Path, duplicates: Sequence[Path], target: Path) -> None:
    repeated: set[int] = set()
    for path in duplicates:
        rows = pq.read_table(path, filters=pc.field("part") == part).column("row").to_pylist()
        repeated.update(rows)
    table = pq.read_table(source, columns=["id", "text"])
    keep = pa.array([row not in repeated for row in range(table.num_rows)], pa.bool_())
    _write_table(target, table.filter(keep))


def filter_length(source: Path, target: Path, config: Cleaning) -> None:
    table = pq.read_table(source)
    chars = pc.utf8_length(table.column("text"))
    keep = pc.and_(pc.greater_equal(chars, config.min_chars), pc.less_equal(chars, config.max_chars))
    _write_table(target, table.filter(keep))


@functools.lru_cache(maxsize=1)
def _tokenizer(path: str) -> Tokenizer:
    return Tokenizer.from_pretrained(path)


def tokenise_part(source: Path, target: Path, config: Cleaning) -> None:
    table = pq.read_table(source)
    tokenizer = _tokenizer(config.tokenizer)
    ids = [tokenizer.encode(text) for text in table.column("text").to_pylist()]
    _write_table(target, table.append_column("token_ids", pa.array(ids, pa.list_(pa.int32()))))


# ---- The pipeline ----


def _run(name: str, work: Callable[[Any], None], items: Sequence[Any], done: Callable[[Any], bool]) -> None:
    """Ray Data over the items that are not done yet, one task an item."""
    pending = [item for item in items if not done(item)]
    if not pending:
        return

    def one(row: dict[str, Any]) -> dict[str, Any]:
        work(row["item"])
        return {"stage": name}

    ray.data.from_items([{"item": item} for item in pending], override_num_blocks=len(pending)).map(one).materialize()


def _check_same(folder: Path, config: Cleaning, files: Sequence[str]) -> None:
    """A folder belongs to one configuration: parts made under another are not mixed in."""
    path, now = folder / "config.json", {**asdict(config), "inputs": list(files)}
    if not path.exists():
        _write_json(path, now)
        return
    before = json.loads(path.read_text(encoding="utf-8"))
    changed = sorted(key for key in now if before.get(key) != now[key])
    if changed:
        raise ValueError(f"{config.output}: was begun with another {', '.join(changed)}; give it a new folder")


def clean(config: Cleaning) -> Report:
    """Runs what is left to do and returns the counts. Raises ValueError for what is wrong in configuration or input."""
    files = sorted({path for pattern in config.inputs for path in glob.glob(pattern)})
    if not files:
        raise ValueError(f"Cleaning: no file matches {list(config.inputs)}")
    output = Path(config.output)
    stages = output / ".stages"
    _check_same(stages, config, files)

    read = stages / "read"
    _run("read", lambda item: _ignore(read_file(item[0], item[1], read, config)), list(enumerate(files)),
         lambda item: (read / f"{item[0]:05d}.json").exists())
    parts = [f"{number:05d}-{part:05d}" for number in range(len(files)) for part in range(_parts_of(read, number))]

    def stage(name: str, work: Callable[[str, Path], None], folder: Path) -> None:
        _run(name, lambda part: work(part, folder / f"{part}.parquet"), parts,
             lambda part: (folder / f"{part}.parquet").exists())

    folders = {name: stages / name for name in STAGES}
    stage("normalise", lambda part, to: normalise_part(read / f"{part}.parquet", to), folders["normalise"])
    buckets = [stages / "duplicates" / f"{bucket:05d}.parquet" for bucket in range(config.duplicate_buckets)]
    _run("duplicates",
         lambda bucket: find_duplicates(bucket, folders["normalise"], parts, buckets[bucket], len(buckets)),
         range(len(buckets)), lambda bucket: buckets[bucket].exists())
    stage("unique", lambda part, to: drop_duplicates(part, folders["normalise"] / to.name, buckets, to), folders["unique"])
    stage("length", lambda part, to: filter_length(folders["unique"] / to.name, to, config), folders["length"])
    stage("tokenise", lambda part, to: tokenise_part(folders["length"] / to.name, to, config), folders["tokenise"])
    _run("write", lambda part: _write_table(output / f"part-{part}.parquet", pq.read_table(folders["tokenise"] / f"{part}.parquet")),
         parts, lambda part: (output / f"part-{part}.parquet").exists())

    report = _report(parts, folders, output)
    _write_json(output / "report.json", asdict(report))
    return report


def _ignore(_: Any) -> None:
    return None


def _parts_of(read: Path, number: int) -> int:
    return int(json.loads((read / f"{number:05d}.json").read_text(encoding="utf-8"))["parts"])


def _report(parts: Sequence[str], folders: dict[str, Path], output: Path) -> Report:
    documents = {
        name: sum(pq.read_metadata(folder / f"{part}.parquet").num_rows for part in parts) for name, folder in folders.items()
    }
    tokens = 0
    for part in parts:
        lengths = pc.list_value_length(pq.read_table(output / f"part-{part}.parquet", columns=["token_ids"]).column(0))
        tokens += pc.sum(lengths).as_py() or 0
    return Report(documents=documents, tokens=tokens, parts=len(parts))
