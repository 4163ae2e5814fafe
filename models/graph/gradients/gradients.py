"""One gradient rule per operator. A new operator is one function, and one line in its family. Pure.

A rule gets the graph under construction, a forward node and the name of the gradient of its
first output that has one; it emits the nodes for the gradients of the inputs that are wanted, and
returns their names. `Split` and the recurrent networks have several outputs that carry gradients;
their rules ask for each.
"""

from models.graph.backward import Rule
from models.graph.gradients.gradients_activation import ACTIVATION
from models.graph.gradients.gradients_adaptive import ADAPTIVE
from models.graph.gradients.gradients_einsum import EINSUM
from models.graph.gradients.gradients_elementwise import ELEMENTWISE
from models.graph.gradients.gradients_index import INDEX
from models.graph.gradients.gradients_linear import LINEAR
from models.graph.gradients.gradients_reduce import REDUCE
from models.graph.gradients.gradients_shape import SHAPE
from models.graph.gradients.recurrent.gradients_recurrent import RECURRENT
from models.graph.gradients.spatial.gradients_resize import RESIZE
from models.graph.gradients.spatial.gradients_spatial import SPATIAL

__all__ = ["GRADIENTS"]

GRADIENTS: dict[str, Rule] = {
    **ACTIVATION,
    **ADAPTIVE,
    **EINSUM,
    **ELEMENTWISE,
    **INDEX,
    **LINEAR,
    **RECURRENT,
    **REDUCE,
    **RESIZE,
    **SHAPE,
    **SPATIAL,
}
