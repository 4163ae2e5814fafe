"""Cases of `models.graph.gradients.gradients_einsum`."""

import numpy as np
import torch
from gradient_case import BATCH, Case, floats


def einsum_case(equation: str, *operands: np.ndarray, follows: tuple[int, ...] = (0,)) -> Case:
    return Case(
        f"Einsum {equation}",
        "Einsum",
        operands,
        lambda *values: torch.einsum(equation, *values),
        {"equation": equation},
        follows,
    )


ROWS, IMAGES = floats(BATCH, 5), floats(BATCH, 4, 5)

EINSUM = [
    einsum_case("ij,jk->ik", ROWS, floats(5, 6)),
    einsum_case("ij, kj -> ik", ROWS, floats(6, 5)),
    einsum_case("bij,bjk->bik", IMAGES, floats(BATCH, 5, 6), follows=(0, 1)),
    einsum_case("bij,jk->bik", IMAGES, floats(5, 6)),
    einsum_case("bhid,bhjd->bhij", floats(BATCH, 2, 4, 5), floats(BATCH, 2, 6, 5), follows=(0, 1)),
    einsum_case("bhij,bhjd->bihd", floats(BATCH, 2, 4, 6), floats(BATCH, 2, 6, 5), follows=(0, 1)),
    einsum_case("bi,ci->bc", ROWS, floats(4, 5)),
    einsum_case("bi,bi->b", ROWS, floats(BATCH, 5, high=1), follows=(0, 1)),
    einsum_case("bi,bj->bij", ROWS, floats(BATCH, 4), follows=(0, 1)),
    einsum_case("bn,anm,bm->ba", ROWS, floats(2, 5, 4), floats(BATCH, 4), follows=(0, 2)),
    einsum_case("bij->bji", IMAGES),
    einsum_case("bij->bi", IMAGES),
    einsum_case("bij->", IMAGES),
    einsum_case("bij,k->bj", IMAGES, floats(3)),
    einsum_case("ij,jk", ROWS, floats(5, 6)),
    einsum_case("...ij,...jk->...ik", floats(BATCH, 2, 4, 5), floats(1, 1, 5, 6)),
    einsum_case("...d,de->...e", IMAGES, floats(5, 6)),
    einsum_case("...i,...i->...", IMAGES, floats(BATCH, 4, 5, high=1), follows=(0, 1)),
    einsum_case("bij,bij->bij", IMAGES, floats(BATCH, 1, 5), follows=(0, 1)),
    einsum_case("bij,ij->bi", IMAGES, floats(4, 1)),
    einsum_case("bij,cij->bc", IMAGES, floats(6, 1, 5)),
    einsum_case("nctv,vw->nctw", floats(BATCH, 2, 3, 4), floats(4, 4)),
    einsum_case("nkctv,kvw->nctw", floats(BATCH, 2, 3, 4, 5), floats(2, 5, 6)),
]
