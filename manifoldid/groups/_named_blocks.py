"""Groups that name the blocks of a dict point they act on: what the blocks they do not name do."""

from collections.abc import Sequence

from manifoldid.groups.geometry import Geometry
from manifoldid.groups.product import ProductGeometry
from manifoldid.points import Weights, part_of_weights


class NamedBlocksGeometry(ProductGeometry):
    """The geometry of one group on its own blocks; the others are Euclidean."""

    def __init__(self, own: Geometry, weights: Weights):
        """Puts free blocks beside `own`, the geometry on the blocks that its group names.

        Args:
            own: The geometry of the named blocks.
            weights: Item weights of all blocks.
        """
        Geometry.__init__(self, own.group, weights)
        own.weights = part_of_weights(weights, own.group.block_names)
        self.parts = [(own, own.group.block_names)]
        self.isometric = own.isometric


def block_names(names: object, role: str) -> tuple[str, ...]:
    """`names` as a tuple of names of blocks; one name stands for itself.

    Raises:
        TypeError: They are no sequence of strings.
    """
    if isinstance(names, str):
        return (names,)
    if not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
        raise TypeError(f"`{role}` must be a sequence of names of blocks, got {names!r}")
    return tuple(names)
