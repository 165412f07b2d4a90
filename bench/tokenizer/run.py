#!/usr/bin/env python3
"""Tokenizer speed, side by side in one run: Quire against the PyPI packages that are installed.

    python3 bench/tokenizer/run.py libquire.so TOKENIZER_DIR TEXT... [--repeat 5] [--json FILE]

One thread, CPU seconds of it (a loaded machine waits, but is not charged), medians.  "first": a fresh tokenizer's
first pass over the text; "again": the same text once more, when word caches are warm.  "load": tokenizer.json to a
ready tokenizer; who prepares answers then pays for them there, so "load + first" is given, too.  Ids are compared
with those of `tokenizers`.  Worst cases (a megabyte of one letter, of spaces, of emoji) are added with --worst.
"""
import argparse
import ctypes
import json
import os
import statistics
import sys
import time

os.environ.setdefault("RAYON_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


class Options(ctypes.Structure):
    _fields_ = [("size", ctypes.c_size_t), ("add_special_tokens", ctypes.c_bool), ("parse_special", ctypes.c_bool),
                ("truncate_and_pad", ctypes.c_bool)]


class Quire:
    """qr_tokenizer_* of quire.h."""

    library = None

    def __init__(self, folder):
        self.handle = ctypes.c_void_p()
        if self.library.qr_tokenizer_open(folder.encode(), ctypes.byref(self.handle), None):
            sys.exit("qr_tokenizer_open failed")

    def encode(self, data):
        ids, count = ctypes.POINTER(ctypes.c_int32)(), ctypes.c_size_t()
        options = Options(ctypes.sizeof(Options), False, True, False)
        if self.library.qr_tokenizer_encode(self.handle, data, ctypes.c_size_t(len(data)), ctypes.byref(options),
                                            ctypes.byref(ids), ctypes.byref(count), None):
            sys.exit("qr_tokenizer_encode failed")
        return ids, count.value

    def ids(self, result):
        out = result[0][:result[1]]
        self.library.qr_ids_free(result[0])
        return out


def peers(folder):
    """name -> (load, encode of str, ids of its result)"""
    path, out = folder + "/tokenizer.json", {}
    try:
        import tokenizers
        out["tokenizers " + tokenizers.__version__] = (lambda: tokenizers.Tokenizer.from_file(path),
                                                       lambda t, s: t.encode(s, add_special_tokens=False), lambda r: r.ids)
    except ImportError:
        pass
    try:
        import gigatoken
        out["gigatoken"] = (lambda: gigatoken.Tokenizer.from_json(open(path, encoding="utf-8").read()),
                            lambda t, s: t.encode(s), list)
    except ImportError:
        pass
    try:
        import fastokens
        out["fastokens"] = (lambda: fastokens.Tokenizer.from_file(path), lambda t, s: t.encode(s, add_special_tokens=False),
                            lambda r: list(getattr(r, "ids", r)))
    except ImportError:
        pass
    try:
        import tokie
        out["tokie"] = (lambda: tokie.Tokenizer.from_json(path), lambda t, s: t.encode(s, add_special_tokens=False),
                        lambda r: list(getattr(r, "ids", r)))
    except ImportError:
        pass
    return out


def timed(function, *arguments):
    start = time.process_time()
    result = function(*arguments)
    return time.process_time() - start, result


def measure(load, encode, text, size):
    """One fresh tokenizer: milliseconds to load, MB/s of its first and of its second pass, the result."""
    seconds, tokenizer = timed(load)
    first, result = timed(encode, tokenizer, text)
    again, result = timed(encode, tokenizer, text)
    return seconds * 1e3, size / 1e6 / first, size / 1e6 / again, result


def compare(folder, name, text, repeat):
    """Rows of one text. The peers take turns, so that a machine that slows down slows all of them."""
    data = text.encode()
    every = {"quire": (lambda: Quire(folder), lambda t, s: (t, t.encode(data)), lambda r: r[0].ids(r[1]))}
    every.update(peers(folder))
    samples, answers = {}, {}
    for turn in range(repeat):
        for peer, (load, encode, ids) in every.items():
            if turn > 0 and (peer not in samples or peer.startswith("tokenizers")):
                continue
            try:
                *sample, result = measure(load, encode, text, len(data))
            except Exception as problem:  # pylint: disable=broad-except
                print("%-16s %-20s %s" % (name, peer, str(problem)[:60]))
                continue
            samples.setdefault(peer, []).append(sample)
            if turn == 0:
                answers[peer] = ids(result)
    want = next((a for p, a in answers.items() if p.startswith("tokenizers")), None)
    for peer, values in samples.items():
        load, first, again = (statistics.median(column) for column in zip(*values))
        yield {"text": name, "peer": peer, "bytes": len(data), "load_ms": load, "first_mb_s": first, "again_mb_s": again,
               "load_and_first_ms": load + len(data) / 1e3 / first, "equal": want is None or answers[peer] == want}


def processor():
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        return next((line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), "")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library")
    parser.add_argument("folder")
    parser.add_argument("texts", nargs="*")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--bytes", type=int, default=4000000)
    parser.add_argument("--worst", action="store_true")
    parser.add_argument("--json")
    options = parser.parse_args()
    Quire.library = ctypes.CDLL(os.path.abspath(options.library))
    texts = [(os.path.basename(p), open(p, "rb").read()[:options.bytes].decode(errors="ignore")) for p in options.texts]
    if options.worst:
        texts += [("1 MB of a", "a" * 1000000), ("1 MB of space", " " * 1000000), ("1 MB of emoji", "\U0001f642" * 250000)]
    rows = []
    for name, text in texts:
        for row in compare(options.folder, name, text, options.repeat):
            rows.append(row)
            print("%-16s %-20s load %7.1f ms  first %7.1f MB/s  again %7.1f MB/s  load + first %7.1f ms  %s" %
                  (name, row["peer"], row["load_ms"], row["first_mb_s"], row["again_mb_s"], row["load_and_first_ms"],
                   "" if row["equal"] else "IDS DIFFER"), flush=True)
    if options.json:
        record = {"command": " ".join(["python3"] + sys.argv), "processor": processor(),
                  "load_average": os.getloadavg()[0], "rows": rows}
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(record, file, indent=1)
            file.write("\n")


if __name__ == "__main__":
    main()
