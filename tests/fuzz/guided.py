"""One harness guided by coverage, in this process: `python -m tests.fuzz.guided NAME SEED SECONDS`.

Needs atheris: pip install 'alexnet-2012[fuzz]'. Of its libFuzzer the process is told to end after
so many seconds; it ends with an error at the first finding, whose input it writes beside.
"""

from __future__ import annotations

import logging
import random
import sys
import tempfile
import warnings
from pathlib import Path

from tests.fuzz.harness import check_sentence
from tests.fuzz.mutation import damaged

_CASE_SECONDS = 120
_MOST_MEGABYTES = 4096


def main() -> None:
    import atheris

    logging.disable()
    warnings.simplefilter("ignore")  # of numpy, about what it reads in spite of damage
    name, seed, seconds = sys.argv[1:]
    with atheris.instrument_imports(include=["data_prep", "pipeline"]):
        from tests.fuzz.harnesses import harness_of

        harness = harness_of(name)
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    files, corpus = folder / "files", folder / "corpus"
    files.mkdir()
    corpus.mkdir()
    target = harness.prepare(files)
    for number, content in enumerate(target.corpus):
        (corpus / str(number)).write_bytes(content)

    def read(content: bytes) -> None:
        try:
            target.read(content)
        except harness.errors as error:
            if type(error) not in harness.errors:
                raise
            check_sentence(error)

    def mutate(content: bytes, most: int, seed: int) -> bytes:
        corpus = [bytes(content), *target.corpus]
        return damaged(random.Random(seed), corpus[:1], harness.changes)[:most]

    limits = {
        "seed": seed,
        "max_total_time": seconds,
        "timeout": _CASE_SECONDS,
        "rss_limit_mb": _MOST_MEGABYTES,
        "max_len": 4 * max(map(len, target.corpus)),
        "artifact_prefix": f"{folder}/",
    }
    options = [f"-{key}={value}" for key, value in limits.items()]
    atheris.Setup([name, *options, str(corpus)], read, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
