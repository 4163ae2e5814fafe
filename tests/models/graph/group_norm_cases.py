"""Cases of `models.graph.gradients_group_norm`."""

from gradient_case import BATCH, IMAGE, Case, floats
from torch.nn import functional as nnf

GROUP_NORM = [
    Case(
        f"GroupNormalization {label}",
        "GroupNormalization",
        [x, floats(x.shape[1]), floats(x.shape[1], high=1)],
        lambda x, s, b, groups=groups: nnf.group_norm(x, groups, s, b, 1e-3),
        {"num_groups": groups, "epsilon": 1e-3},
    )
    for label, x, groups in [
        ("image", IMAGE, 2),
        ("of one group", IMAGE, 1),
        ("of single channels", IMAGE, 4),
        ("line", floats(BATCH, 6, 5), 3),
        ("volume", floats(BATCH, 4, 2, 3, 2), 2),
        ("vector", floats(BATCH, 6), 2),
    ]
]
