"""Groups that name the blocks of a dict point they act on: what the blocks they do not name do."""

from manifoldid.groups.geometry import Geometry
from manifoldid.groups.product import ProductGeometry, part_of_weights
from manifoldid.points import Weights


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
