"""Reports: one self-contained HTML file per run, or per comparison of runs."""
