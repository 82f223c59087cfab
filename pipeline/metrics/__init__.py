"""What Prometheus sees of a run: the metrics of a rank, those of the job, and their publication.

Every process fills a registry of its own, and a `Publisher` writes it to the run directory, where
`pipeline.exporter` serves it. Names, units and labels follow Prometheus' conventions: base units,
counters that end in `_total`, ratios in [0, 1], labels from closed sets only. Counters are there at
0 from the start; a gauge of something measured appears with its first value, because a loss of 0
would be a lie. `declared.py` has them all.
"""
