"""The report of a run: one self-contained page, `RUN/report.html`; of several, their comparison.

`inputs` reads the run directory, `summary`, `marks`, `ranks` and `predictions` compute, `curves`
and `images` draw, `page` puts it all into the template. `comparison`, `overlays` and
`comparison_page` do so for several runs; `hidden_layer` looks for the nearest training images.
Whatever is not there yet (no evaluation, shard set moved away) the page says in its place.
"""
