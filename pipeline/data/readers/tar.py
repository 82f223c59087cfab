"""Images in the tars of a shard set, found by index: no tar is ever parsed."""

from __future__ import annotations

from data_prep.shard_set.index import check_shard_sizes, read_checksums, read_index, remedy
from pipeline.data.cache.remote_shards import RemoteShards
from pipeline.data.cache.shard_set import ShardSet
from pipeline.data.readers.files import LocalFiles, raise_file_limit
from pipeline.data.readers.sample_index import SampleIndex


def open_tars(shards: ShardSet, split_name: str, files: RemoteShards | None) -> SampleIndex:
    """The images of one split in its tars; `files` are these, if they are staged from a URL.

    Raises `ShardSetError` if the index is missing or not the manifest's, or if a local shard is
    missing or not as long as the manifest says.
    """
    raise_file_limit()
    folder, split = shards.folder, shards.manifest.split(split_name)
    rows, checksums = read_index(folder, split), read_checksums(folder, split)
    paths = [folder / name for name in split.filenames]
    if files is None:
        check_shard_sizes(folder, split)
        what_to_do = remedy(folder)
    else:
        what_to_do = "delete it from the cache, and the next run fetches it again"
    return SampleIndex(
        encoding=shards.manifest.encoding,
        image_size=shards.manifest.image_size,
        rows=rows,
        checksums=checksums,
        prefix=b"",
        files=files or LocalFiles(paths),
        paths=paths,
        are_tars=True,
        remedy=what_to_do,
    )
