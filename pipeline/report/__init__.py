"""The report of a run: one self-contained page, `RUN/report.html`.

`inputs` reads the run directory, `summary` and `predictions` compute, `curves` and `images` draw,
`page` puts it all into the template. Whatever is not there yet (no evaluation, shard set moved
away) the page says in its place.
"""
