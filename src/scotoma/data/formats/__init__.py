"""One file per family of image formats; `scotoma.data.image` chooses among them.

Every family offers `read(path) -> Raw`, `read_mask(path) -> Raw`, `read_grid(path) -> Grid` and, where it
can be written, `write(path, array, grid, header)`.
"""
