"""Files of a folder of scores: table, arrays and manifest, each with its checksum."""

import zipfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from vog_hf.errors import OutputFolderError, as_path
from vog_hf.metric.heat_maps import RaggedMaps
from vog_hf.runtime.files import explained_disk_errors, file_checksum, read_json, write_atomically, write_json
from vog_hf.scores.formatting import escaped
from vog_hf.scores.manifest import fault_in

FORMAT = 1
MANIFEST_NAME = "manifest.json"
TABLE_NAME = "scores.parquet"
SHARD_PATTERN = "scores-*-of-*.parquet"
SHARD_ROWS = 500_000
BROKEN_ARRAY = (
    *(ValueError, EOFError, OSError, OverflowError, TypeError, SyntaxError, MemoryError, RecursionError),
    zipfile.BadZipFile,
)
FILES = "files"  # in manifest.json: size and checksum of each file of the folder
CHECKED_AT_LOAD = 64 * 2**20  # bytes; a file of this size is read in well under a second
ROW_HASH = "row_hash"
ROW_ID = "id"
HEAT_MAP_FILES = {"values": "heat-map-values.npy", "shapes": "heat-map-shapes.npy", "scale": "heat-map-scale.npy"}
TRAJECTORY = "trajectory-"
TOKENIZER_NAME = "tokenizer.json"
MAX_TOKENIZER = 64 * 2**20  # bytes of it that are read
Array = npt.NDArray[Any]


def save_table(
    folder: Path, columns: Mapping[str, Array], row_hash: npt.NDArray[np.uint64] | None, ids: Any = None
) -> None:
    """Write the table of `VoGScores` as parquet: one file, or shards of `SHARD_ROWS` that `load_dataset` reads."""
    n_rows = len(next(iter(columns.values())))
    named = {} if ids is None else {ROW_ID: [escaped(id_) if isinstance(id_, str) else id_ for id_ in ids]}
    hashes = {} if row_hash is None else {ROW_HASH: row_hash}
    table = pa.table({"row": np.arange(n_rows), **named, **columns, **hashes})
    n_shards = max(1, -(-n_rows // SHARD_ROWS))
    for shard in range(n_shards):
        rows = table.slice(shard * SHARD_ROWS, SHARD_ROWS)
        name = TABLE_NAME if n_shards == 1 else f"scores-{shard:05d}-of-{n_shards:05d}.parquet"
        write_atomically(folder / name, partial(pq.write_table, rows, write_page_checksum=True))


def save_array(path: Path, values: Array) -> None:
    """Write an array as .npy, atomically."""

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.save(file, values, allow_pickle=False)

    write_atomically(path, write)


def save_arrays(folder: Path, trajectories: Mapping[str, Array], heat_maps: RaggedMaps | None) -> None:
    """Write trajectories and heat maps, each array as a file that can be mapped into memory."""
    for name, values in trajectories.items():
        save_array(folder / f"{TRAJECTORY}{name}.npy", values)
    if heat_maps is not None:
        for part, file in HEAT_MAP_FILES.items():
            save_array(folder / file, getattr(heat_maps, part))


def save_tokenizer(folder: Path, tokenizer: str) -> None:
    """Write the tokenizer that finds the words of heat maps of texts."""
    write_atomically(folder / TOKENIZER_NAME, partial(Path.write_text, data=tokenizer, encoding="utf-8"))


def read_tokenizer(folder: Path) -> str | None:
    """Read it as written; None without one, or for a file that cannot be one."""
    path = folder / TOKENIZER_NAME
    if not path.is_file() or path.stat().st_size > MAX_TOKENIZER:
        return None
    return path.read_text(encoding="utf-8", errors="replace")


def make_folder(folder: str | Path, *, loaded_from: Path | None) -> Path:
    """Make a folder for scores, which must be new or empty.

    Args:
        folder: The folder.
        loaded_from: Folder that the scores were loaded from, whose files are verified first.

    Raises:
        OutputFolderError: The folder is not empty, or a file in the other one is damaged.
    """
    folder = as_path("folder", folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputFolderError(f"{folder} is {'not empty' if folder.is_dir() else 'a file'}; save to a new folder")
    if loaded_from is not None and (loaded_from / MANIFEST_NAME).is_file():
        require_undamaged(loaded_from)
    with explained_disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def save_parts(
    folder: Path,
    columns: Mapping[str, Array],
    manifest: Mapping[str, object],
    *,
    trajectories: Mapping[str, Array],
    heat_maps: RaggedMaps | None,
    row_hash: npt.NDArray[np.uint64] | None,
    ids: Array | None,
    tokenizer: str | None,
) -> None:
    """Write the arguments of `VoGScores`, the manifest last; the tokenizer only with heat maps."""
    save_arrays(folder, trajectories, heat_maps)
    save_table(folder, columns, row_hash, ids)
    if heat_maps is not None and tokenizer is not None:
        save_tokenizer(folder, tokenizer)
    write_manifest(folder, manifest)


def read_parts(folder: Path) -> dict[str, Any]:
    """Read the arguments of `VoGScores` from a folder that `write_manifest` finished; arrays are memory-mapped.

    Raises:
        OutputFolderError: No finished scores, scores of another version, or a damaged file.
    """
    tables = [folder / TABLE_NAME] if (folder / TABLE_NAME).is_file() else sorted(folder.glob(SHARD_PATTERN))
    if not (folder / MANIFEST_NAME).is_file() or not tables:
        raise OutputFolderError(
            f"{folder} holds no finished scores (no {MANIFEST_NAME} with {TABLE_NAME}); score into it again"
        )
    manifest = read_manifest(folder)
    require_undamaged(folder, up_to=CHECKED_AT_LOAD)
    manifest.pop(FILES, None)
    try:
        table = pa.concat_tables(pq.read_table(path, page_checksum_verification=True) for path in tables)
        values = {name: table[name].to_numpy() for name in table.column_names if name != "row"}
    except (pa.ArrowException, OSError, ValueError, LookupError) as error:
        raise OutputFolderError(
            f"the table of scores in {folder} is damaged ({error}); delete the folder and score again"
        ) from error
    trajectories = {
        path.stem.removeprefix(TRAJECTORY): _memory_map(path) for path in sorted(folder.glob(f"{TRAJECTORY}*.npy"))
    }
    heat_maps = None
    if (folder / HEAT_MAP_FILES["values"]).is_file():
        heat_maps = RaggedMaps(**{part: _memory_map(folder / file) for part, file in HEAT_MAP_FILES.items()})
    optional = {"row_hash": values.pop(ROW_HASH, None), "ids": values.pop(ROW_ID, None), "heat_maps": heat_maps}
    optional["tokenizer"] = read_tokenizer(folder)
    return {"columns": values, "manifest": manifest, "trajectories": trajectories, **optional}


def write_manifest(folder: Path, manifest: Mapping[str, object]) -> None:
    """Write the manifest, with size and checksum of every other file, last: a folder that has it is whole."""
    paths = [path for pattern in ("*.parquet", "*.npy", TOKENIZER_NAME) for path in sorted(folder.glob(pattern))]
    files = {path.name: {"bytes": path.stat().st_size, "crc32": file_checksum(path)} for path in paths}
    write_json(folder / MANIFEST_NAME, {**manifest, FILES: files})


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read the manifest of a folder, and verify the type of every key that is used.

    Raises:
        OutputFolderError: It is damaged, of another version, or not ours.
    """
    manifest = read_json(folder / MANIFEST_NAME)
    written = manifest.get("format") if isinstance(manifest, Mapping) else None
    if isinstance(written, int) and written != FORMAT:  # first, since another format may have other keys
        raise OutputFolderError(
            f"{folder / MANIFEST_NAME} has format {written!r}, this version reads {FORMAT}; score again"
        )
    fault = fault_in(manifest)
    if fault is not None:
        raise OutputFolderError(f"{folder / MANIFEST_NAME} is damaged: {fault}; restore the folder, or score again")
    return dict(manifest)


def require_undamaged(folder: Path, *, up_to: int | None = None) -> None:
    """Raise OutputFolderError for a file that changed since `write_manifest`; above ``up_to`` bytes only by size."""
    for name, written in read_manifest(folder).get(FILES, {}).items():
        if Path(name).name != name:  # a manifest may come from elsewhere
            raise OutputFolderError(
                f"{folder / MANIFEST_NAME} names the file {name!r}, which lies outside its folder; score again"
            )
        path = folder / name
        size = path.stat().st_size if path.is_file() else None
        whole = size == written["bytes"]
        if whole and (up_to is None or written["bytes"] <= up_to):
            whole = file_checksum(path) == written["crc32"]
        if not whole:
            state = "is missing" if size is None else f"is damaged: {size:,} bytes"
            raise OutputFolderError(
                f"{path} {state}, and {written['bytes']:,} bytes with the checksum {written['crc32']} were written; "
                "restore it, or delete the folder and score again"
            )


def _memory_map(path: Path) -> Array:
    try:
        values = np.load(path, mmap_mode="r", allow_pickle=False)
    except BROKEN_ARRAY as error:
        raise OutputFolderError(
            f"{path} is not an array of numbers ({error}); restore it, or delete the folder and score again"
        ) from error
    if not isinstance(values, np.ndarray) or not np.issubdtype(values.dtype, np.number):
        raise OutputFolderError(f"{path} is not an array of numbers; restore it, or delete the folder and score again")
    return values
