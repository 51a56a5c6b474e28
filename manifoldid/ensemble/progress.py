"""The bar that long loops over members or steps show."""

from collections.abc import Iterator


def counted(size: int, what: str, shown: bool) -> Iterator[int]:
    """0 .. size - 1, with a bar called `what` on the standard error while they last, if it is to be shown."""
    if not shown:
        yield from range(size)
        return
    from rich.console import Console  # here: half of what `import manifoldid` would take
    from rich.progress import track

    yield from track(range(size), what, console=Console(stderr=True), transient=True)
