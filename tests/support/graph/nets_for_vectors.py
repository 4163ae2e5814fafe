"""Nets that people bring for rows of numbers: each kind of activation, gate, distance and head."""

import math

import torch
from small_net import CLASSES, Brought, Net, chain
from torch import nn
from torch.nn import functional as nnf

WIDE = 8


def with_activation(activation: nn.Module) -> Brought:
    return Brought(
        lambda: chain(nn.Linear(6, WIDE), activation, nn.Linear(WIDE, CLASSES)), shape=(6,)
    )


def vector(function: object, loss: str = "cross_entropy", **parts: object) -> Brought:
    return Brought(lambda: Net(function, **parts), (6,), loss)  # type: ignore[arg-type]


def linear(wide_in: int = 6, wide_out: int = WIDE, *, bias: bool = True) -> nn.Linear:
    return nn.Linear(wide_in, wide_out, bias=bias)


class Margin(nn.Module):
    """The logits of an angular margin head: angles between features and class centers."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.centers = linear(), nn.Parameter(torch.randn(CLASSES, WIDE))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        cosine = nnf.normalize(self.features(x)) @ nnf.normalize(self.centers).T
        return -torch.acos(cosine.clamp(-0.999, 0.999)) * 4


class Tree(nn.Module):
    """A soft decision tree of depth 2: products of gates weight the leaves."""

    def __init__(self) -> None:
        super().__init__()
        self.gates, self.leaves = linear(6, 3), nn.Parameter(torch.randn(4, CLASSES))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        right = torch.sigmoid(self.gates(x))
        both = torch.stack([1 - right, right], -1)
        first, left, other = both[:, 0], both[:, 1], both[:, 2]
        paths = torch.cat([first[:, :1] * left, first[:, 1:] * other], 1)
        return paths @ self.leaves


def sparse_experts(s: Net, x: torch.Tensor) -> torch.Tensor:
    scores = s.gate(x)
    best, places = scores.topk(2, dim=-1)
    weight = torch.zeros_like(scores).scatter(1, places, best.softmax(-1))
    return (weight[..., None] * torch.stack([expert(x) for expert in s.experts], 1)).sum(1)


def pairs(s: Net, x: torch.Tensor) -> torch.Tensor:
    """Products of all pairs of features, as the upper triangle."""
    h = s.features(x)
    row, column = torch.triu_indices(WIDE, WIDE, 1)
    return s.head((h[:, :, None] * h[:, None, :])[:, row, column])


def monotone(s: Net, x: torch.Tensor) -> torch.Tensor:
    """Ordered outputs, as of quantiles: a start and positive steps."""
    h = s.body(x)
    return torch.cat([h[:, :1], h[:, :1] + nnf.softplus(h[:, 1:]).cumsum(1)], 1)


def normalized_input() -> nn.Module:
    net = Net(
        lambda s, x: s.head(torch.relu(s.body((x - s.mean) / s.std))),
        body=linear(),
        head=linear(WIDE, CLASSES),
    )
    net.register_buffer("mean", torch.linspace(-1, 1, 6))
    net.register_buffer("std", torch.linspace(1, 2, 6))
    return net


def experts() -> nn.ModuleList:
    return nn.ModuleList(linear(6, CLASSES) for _ in range(3))


torch.manual_seed(1)  # most parts are made right here

NETS_FOR_VECTORS: dict[str, Brought] = {
    "mlp": with_activation(nn.ReLU()),
    "mlp celu": with_activation(nn.CELU(0.7)),
    "mlp elu": with_activation(nn.ELU()),
    "mlp gelu": with_activation(nn.GELU()),
    "mlp gelu tanh": with_activation(nn.GELU("tanh")),
    "mlp glu": Brought(lambda: chain(linear(), nn.GLU(), linear(4, CLASSES)), (6,)),
    "mlp hardsigmoid": with_activation(nn.Hardsigmoid()),
    "mlp hardswish": with_activation(nn.Hardswish()),
    "mlp hardtanh": with_activation(nn.Hardtanh()),
    "mlp leaky": with_activation(nn.LeakyReLU(0.2)),
    "mlp logsigmoid": with_activation(nn.LogSigmoid()),
    "mlp mish": with_activation(nn.Mish()),
    "mlp prelu": with_activation(nn.PReLU(WIDE)),
    "mlp selu": with_activation(chain(nn.SELU(), nn.AlphaDropout(0.1))),
    "mlp shrink": with_activation(chain(nn.Hardshrink(0.1), nn.Softshrink(0.05), nn.Tanhshrink())),
    "mlp silu": with_activation(nn.SiLU()),
    "mlp softplus": with_activation(nn.Softplus()),
    "mlp softsign": with_activation(nn.Softsign()),
    "mlp tanh": with_activation(nn.Tanh()),
    "mlp batch norm": Brought(
        lambda: chain(linear(), nn.BatchNorm1d(WIDE), nn.ReLU(), nn.Dropout(), linear(WIDE, 4)),
        (6,),
    ),
    "mlp layer norm": with_activation(chain(nn.LayerNorm(WIDE), nn.Tanh())),
    "ends in softmax": Brought(lambda: chain(linear(6, CLASSES), nn.Softmax(1)), (6,)),
    "ends in log softmax": Brought(lambda: chain(linear(6, CLASSES), nn.LogSoftmax(1)), (6,)),
    "ends in sigmoid": Brought(
        lambda: chain(linear(), nn.Tanh(), linear(WIDE, 3), nn.Sigmoid()), (6,), "bce"
    ),
    "regression": Brought(lambda: chain(linear(), nn.Tanh(), linear(WIDE, 2)), (6,), "mse"),
    "maxout": vector(
        lambda s, x: s.head(s.body(x).reshape(-1, 4, 2).amax(2)),
        body=linear(),
        head=linear(4, CLASSES),
    ),
    "highway": vector(
        lambda s, x: s.head(
            torch.sigmoid(s.gate(x)) * s.new(x).tanh() + (1 - torch.sigmoid(s.gate(x))) * x
        ),
        gate=linear(6, 6),
        new=linear(6, 6),
        head=linear(6, CLASSES),
    ),
    "residual": vector(
        lambda s, x: s.head(x + s.down(nnf.silu(s.up(x)))),
        up=linear(),
        down=linear(WIDE, 6),
        head=linear(6, CLASSES),
    ),
    "swiglu": vector(
        lambda s, x: s.down(nnf.silu(s.gate(x)) * s.up(x)),
        gate=linear(),
        up=linear(bias=False),
        down=linear(WIDE, CLASSES),
    ),
    "mixture of experts": vector(
        lambda s, x: (
            s.gate(x).softmax(-1)[..., None] * torch.stack([e(x) for e in s.experts], 1)
        ).sum(1),
        gate=linear(6, 3),
        experts=experts(),
    ),
    "sparse experts": vector(sparse_experts, gate=linear(6, 3), experts=experts()),
    "cosine classifier": vector(
        lambda s, x: s.temperature.exp() * nnf.normalize(s.body(x)) @ nnf.normalize(s.centers).T,
        body=linear(),
        centers=torch.randn(CLASSES, WIDE),
        temperature=torch.tensor(0.5),
    )._replace(folding=False),
    "cosine similarity": vector(
        lambda s, x: nnf.cosine_similarity(s.body(x)[:, None], s.centers[None], dim=-1) * 5,
        body=linear(),
        centers=torch.randn(CLASSES, WIDE),
    )._replace(folding=False),
    "prototypes": vector(
        lambda s, x: -(s.body(x)[:, None] - s.centers).norm(dim=-1),
        body=linear(),
        centers=torch.randn(CLASSES, WIDE),
    ),
    "squared distances": vector(
        lambda s, x: -(s.body(x)[:, None] - s.centers).square().sum(-1),
        body=linear(),
        centers=torch.randn(CLASSES, WIDE),
    ),
    "siamese": vector(
        lambda s, x: s.head(
            nnf.pairwise_distance(s.body(x[:, :3]), s.body(x[:, 3:]), keepdim=True)
        ),
        body=linear(3),
        head=linear(1, CLASSES),
    ),
    "siamese difference": vector(
        lambda s, x: s.head((s.body(x[:, :3]) - s.body(x[:, 3:])).abs()),
        body=linear(3),
        head=linear(WIDE, CLASSES),
    ),
    "angular margin": Brought(Margin, (6,))._replace(folding=False),
    "radial basis": vector(
        lambda s, x: s.head(torch.exp(-s.width.abs() * (x[:, None] - s.centers).norm(dim=-1))),
        centers=torch.randn(5, 6),
        width=torch.rand(5),
        head=linear(5, CLASSES),
    ),
    "soft tree": Brought(Tree, (6,)),
    "gates multiplied": vector(
        lambda s, x: s.head(torch.sigmoid(s.body(x)).reshape(-1, 4, 2).prod(-1)),
        body=linear(),
        head=linear(4, CLASSES),
    ),
    "fourier features": vector(
        lambda s, x: s.head(torch.cat([torch.sin(s.body(x)), torch.cos(s.body(x))], 1)),
        body=linear(),
        head=linear(16, CLASSES),
    ),
    "factorization machine": vector(
        lambda s, x: (
            s.linear(x)
            + s.head(((x @ s.v).square() - x.square() @ s.v.square()).sum(1, keepdim=True))
        ),
        linear=linear(6, CLASSES),
        v=torch.randn(6, 3),
        head=linear(1, CLASSES),
    )._replace(folding=False),
    "outer product": vector(
        lambda s, x: s.head((s.left(x)[:, :, None] * s.right(x)[:, None]).flatten(1)),
        left=linear(6, 3),
        right=linear(6, 4),
        head=linear(12, CLASSES),
    ),
    "bilinear by einsum": vector(
        lambda s, x: torch.einsum("ni,cij,nj->nc", x, s.core, x), core=torch.randn(CLASSES, 6, 6)
    ),
    "pairs of features": vector(pairs, features=linear(), head=linear(28, CLASSES)),
    "ordered outputs": vector(monotone, body=linear(6, 4), loss="mse"),
    "tied autoencoder": vector(
        lambda s, x: nnf.linear(torch.tanh(nnf.linear(x, s.w, s.b)), s.w.T),
        w=torch.randn(4, 6),
        b=torch.randn(4),
        loss="mse",
    )._replace(folding=False),
    "weight norm": Brought(
        lambda: chain(
            nn.utils.parametrizations.weight_norm(linear()), nn.ReLU(), linear(WIDE, CLASSES)
        ),
        (6,),
    )._replace(folding=False),
    "normalized input": Brought(normalized_input, (6,)),
    "log sum exp": vector(lambda s, x: s.body(x).reshape(-1, 4, 2).logsumexp(-1), body=linear()),
    "rms norm": vector(
        lambda s, x: s.head(
            s.scale * s.body(x) * torch.rsqrt(s.body(x).square().mean(-1, keepdim=True) + 1e-6)
        ),
        body=linear(),
        scale=torch.rand(WIDE),
        head=linear(WIDE, CLASSES),
    ),
    "table of categories": Brought(
        lambda: Net(
            lambda s, x: s.head(torch.relu(s.table(x).flatten(1))),
            table=nn.Embedding(9, 3),
            head=linear(15, CLASSES),
        ),
        (5,),
        tokens=9,
    ),
    "deep sets": Brought(
        lambda: Net(
            lambda s, x: s.head(torch.cat([s.body(x).relu().sum(1), s.body(x).amax(1)], 1)),
            body=linear(3),
            head=linear(16, CLASSES),
        ),
        (5, 3),
    ),
    "angles": vector(
        lambda s, x: s.head(torch.atan(s.body(x)) - torch.tan(0.1 * s.body(x)) / math.pi),
        body=linear(),
        head=linear(WIDE, CLASSES),
    ),
}
