"""Nets that people bring for windows of sensors, sound and text."""

import math

import torch
from small_net import CLASSES, Brought, Net, chain
from torch import nn
from torch.nn import functional as nnf

WINDOW = (3, 16)  # channels, steps
STEPS = (7, 6)  # steps, features


def window(function: object, **parts: object) -> Brought:
    return Brought(lambda: Net(function, **parts), WINDOW)  # type: ignore[arg-type]


def steps(function: object, **parts: object) -> Brought:
    return Brought(lambda: Net(function, **parts), STEPS)  # type: ignore[arg-type]


def text(function: object, **parts: object) -> Brought:
    return Brought(lambda: Net(function, **parts), (7,), tokens=11)  # type: ignore[arg-type]


def head(wide: int = 8) -> nn.Linear:
    return nn.Linear(wide, CLASSES)


def heads(value: torch.Tensor) -> torch.Tensor:
    """Split [batch, steps, 8] into two heads."""
    return value.reshape(-1, value.shape[1], 2, 4).transpose(1, 2)


def joined(value: torch.Tensor) -> torch.Tensor:
    return value.transpose(1, 2).reshape(-1, value.shape[2], 8)


def attended(
    s: Net,
    h: torch.Tensor,
    *,
    causal: bool = False,
    bias: torch.Tensor | None = None,
    turn: bool = False,
) -> torch.Tensor:
    q, k, v = (heads(part) for part in s.qkv(h).chunk(3, -1))
    if turn:
        q, k = rotated(q), rotated(k)
    scores = q @ k.transpose(-1, -2) / math.sqrt(4)
    if bias is not None:
        scores = scores + bias
    if causal:
        mask = torch.ones(h.shape[1], h.shape[1]).tril().bool()
        scores = scores.masked_fill(~mask, float("-inf"))
    return joined(scores.softmax(-1) @ v)


def rotated(value: torch.Tensor) -> torch.Tensor:
    """Rotary position embedding (Su et al., arXiv:2104.09864) in halves."""
    angle = torch.arange(value.shape[-2])[:, None] * torch.tensor([1.0, 0.1])
    cos, sin = (torch.cat([f(angle), f(angle)], -1) for f in (torch.cos, torch.sin))
    left, right = value.chunk(2, -1)
    return value * cos + torch.cat([-right, left], -1) * sin


def attention(**settings: bool) -> Brought:
    return steps(
        lambda s, x: s.head((s.embed(x) + attended(s, s.norm(s.embed(x)), **settings)).mean(1)),
        embed=nn.Linear(6, 8),
        norm=nn.LayerNorm(8),
        qkv=nn.Linear(8, 24),
        head=head(),
    )


def sinusoids(length: int, wide: int) -> torch.Tensor:
    rate = torch.exp(torch.arange(0, wide, 2) * (-math.log(100.0) / wide))
    angle = torch.arange(length)[:, None] * rate
    return torch.stack([torch.sin(angle), torch.cos(angle)], -1).flatten(1)


def with_sinusoids() -> nn.Module:
    net = Net(
        lambda s, x: s.head(attended(s, s.embed(x) + s.places).mean(1)),
        embed=nn.Linear(6, 8),
        qkv=nn.Linear(8, 24),
        head=head(),
    )
    net.register_buffer("places", sinusoids(7, 8))
    return net


def relative(s: Net, x: torch.Tensor) -> torch.Tensor:
    at = torch.arange(7)
    bias = s.bias[at[:, None] - at[None] + 6].permute(2, 0, 1)
    return s.head(attended(s, s.embed(x), bias=bias).mean(1))


def alibi(s: Net, x: torch.Tensor) -> torch.Tensor:
    at = torch.arange(7)
    slope = torch.tensor([0.5, 0.25])[:, None, None]
    return s.head(attended(s, s.embed(x), bias=-slope * (at[:, None] - at).abs()).mean(1))


def linear_attention(s: Net, x: torch.Tensor) -> torch.Tensor:
    q, k, v = s.qkv(x).chunk(3, -1)
    q, k = nnf.elu(q) + 1, nnf.elu(k) + 1
    total = torch.einsum("nsd,nse->nde", k, v)
    scale = 1 / (torch.einsum("nsd,nd->ns", q, k.sum(1)) + 1e-6)
    return s.head(torch.einsum("nsd,nde,ns->nse", q, total, scale).mean(1))


def class_token(s: Net, x: torch.Tensor) -> torch.Tensor:
    tokens = torch.cat([s.token.expand(x.shape[0], -1, -1), s.embed(x)], 1) + s.places
    return s.head(attended(s, tokens)[:, 0])


def latents(s: Net, x: torch.Tensor) -> torch.Tensor:
    """Learned queries attend to the input (a perceiver)."""
    k, v = s.kv(x).chunk(2, -1)
    return s.head((torch.softmax(s.queries @ k.transpose(1, 2) / 8**0.5, -1) @ v).flatten(1))


def padded_text(s: Net, x: torch.Tensor) -> torch.Tensor:
    """Token 0 is padding: neither attended to nor averaged."""
    real = x != 0
    h = s.table(x)
    bias = torch.where(real, 0.0, -1e9)[:, None, None]
    h = attended(s, h, bias=bias) * real[..., None]
    return s.head(h.sum(1) / real.sum(1, keepdim=True).clamp(min=1))


def last_real(s: Net, x: torch.Tensor) -> torch.Tensor:
    """The state at the last token that is no padding."""
    h = torch.tanh(s.body(s.table(x))).cumsum(1)
    last = (x != 0).long().sum(1).clamp(min=1) - 1
    return s.head(h.gather(1, last[:, None, None].expand(-1, 1, 8)).squeeze(1))


def causal_net() -> nn.Module:
    """A temporal convolutional net: padding on the left alone, growing dilation, a residual."""

    def forward(s: Net, x: torch.Tensor) -> torch.Tensor:
        h = s.first(x)
        for i, conv in enumerate(s.convs):
            h = h + torch.relu(conv(nnf.pad(h, (2 * 2**i, 0))))
        return s.head(h[..., -1])

    convs = nn.ModuleList(nn.Conv1d(8, 8, 3, dilation=2**i) for i in range(3))
    return Net(forward, first=nn.Conv1d(3, 8, 1), convs=convs, head=head())


def chomped(s: Net, x: torch.Tensor) -> torch.Tensor:
    """Padding on both sides, the future cut off again."""
    return s.head(torch.relu(s.conv(x)[:, :, :-4]).mean(-1))


def wave(s: Net, x: torch.Tensor) -> torch.Tensor:
    h, skips = s.first(x), 0
    for gate in s.gates:
        a, b = gate(h).chunk(2, 1)
        out = torch.tanh(a) * torch.sigmoid(b)
        skips, h = skips + out, h + out
    return s.head(torch.relu(skips).mean(-1))


def unrolled(s: Net, x: torch.Tensor) -> torch.Tensor:
    """A recurrence written as a loop of a cell."""
    h = torch.zeros(x.shape[0], 8)
    for t in range(7):
        h = s.cell(x[:, t], h)
    return s.head(h)


def gated_unit(s: Net, x: torch.Tensor) -> torch.Tensor:
    h = s.start.expand(x.shape[0], -1)
    for part in x.unbind(1):
        f = torch.sigmoid(s.forget(torch.cat([part, h], 1)))
        h = (1 - f) * h + f * torch.tanh(s.new(torch.cat([part, f * h], 1)))
    return s.head(h)


def spectrum(s: Net, x: torch.Tensor) -> torch.Tensor:
    """Power at each frequency by a constant transform, then a net."""
    angle = 2 * math.pi / 16 * torch.arange(16)[:, None] * torch.arange(9)
    power = (x @ torch.cos(angle)).square() + (x @ torch.sin(angle)).square()
    return s.head(torch.log1p(power).flatten(1))


def smoothed(s: Net, x: torch.Tensor) -> torch.Tensor:
    count = torch.arange(1, 17)
    return s.head((torch.relu(s.conv(x)).cumsum(-1) / count).flatten(1))


def conv(wide: int = 8, kernel: int = 3, **settings: int) -> nn.Conv1d:
    return nn.Conv1d(3, wide, kernel, **settings)


def recurrent(kind: type[nn.RNNBase], **settings: object) -> Brought:
    wide = 16 if settings.get("bidirectional") else 8
    return steps(
        lambda s, x: s.head(s.body(x)[0][:, -1]),
        body=kind(6, 8, batch_first=True, **settings),
        head=head(wide),
    )


torch.manual_seed(1)  # most parts are made right here

NETS_FOR_SEQUENCES: dict[str, Brought] = {
    "conv1d": Brought(
        lambda: chain(
            conv(padding=1),
            nn.ReLU(),
            nn.MaxPool1d(2),
            nn.Conv1d(8, 8, 3, 2),
            nn.ReLU(),
            nn.Flatten(),
            head(24),
        ),
        WINDOW,
    ),
    "conv1d batch norm": Brought(
        lambda: chain(
            conv(bias=False),
            nn.BatchNorm1d(8),
            nn.ReLU(),
            nn.AdaptiveAvgPool1d(1),
            nn.Flatten(),
            head(),
        ),
        WINDOW,
    ),
    "temporal convolution": Brought(causal_net, WINDOW),
    "chomped convolution": window(chomped, conv=conv(padding=4, dilation=2), head=head()),
    "wave gates": window(
        wave,
        first=conv(8, 1),
        head=head(),
        gates=nn.ModuleList(nn.Conv1d(8, 16, 3, padding=d, dilation=d) for d in (1, 2)),
    ),
    "depthwise separable 1d": Brought(
        lambda: chain(
            conv(3, 5, groups=3),
            conv(8, 1),
            nn.Hardswish(),
            nn.AdaptiveMaxPool1d(1),
            nn.Flatten(),
            head(),
        ),
        WINDOW,
    ),
    "statistics pooling": window(
        lambda s, x: s.head(torch.cat([s.conv(x).mean(-1), s.conv(x).std(-1)], 1)),
        conv=conv(),
        head=head(16),
    ),
    "length pooling": window(
        lambda s, x: s.head(s.conv(x).relu().norm(dim=-1)), conv=conv(), head=head()
    ),
    "variance pooling": window(
        lambda s, x: s.head(torch.log(s.conv(x).var(-1, unbiased=False) + 1e-5)),
        conv=conv(),
        head=head(),
    ),
    "top-k pooling": window(
        lambda s, x: s.head(s.conv(x).topk(3, dim=-1).values.mean(-1)), conv=conv(), head=head()
    ),
    "max over time": window(
        lambda s, x: s.head(s.conv(x).max(-1).values), conv=conv(), head=head()
    ),
    "attention pooling": window(
        lambda s, x: s.head((s.conv(x) * s.score(s.conv(x)).softmax(-1)).sum(-1)),
        conv=conv(),
        score=nn.Conv1d(8, 1, 1),
        head=head(),
    ),
    "sorted": window(
        lambda s, x: s.head(s.conv(x).sort(-1).values.flatten(1)), conv=conv(4), head=head(56)
    ),
    "differences": window(
        lambda s, x: s.head(torch.relu(s.conv(x[..., 1:] - x[..., :-1])).mean(-1)),
        conv=conv(),
        head=head(),
    ),
    "both directions": window(
        lambda s, x: s.head((s.conv(x) + s.conv(x.flip(-1)).flip(-1)).relu().mean(-1)),
        conv=conv(),
        head=head(),
    ),
    "rolled": window(
        lambda s, x: s.head((s.conv(x) * torch.roll(s.conv(x), 2, -1)).mean(-1)),
        conv=conv(),
        head=head(),
    ),
    "running means": window(smoothed, conv=conv(4, padding=1), head=head(64)),
    "spectrum": window(spectrum, head=head(27)),
    "autoencoder 1d": Brought(
        lambda: chain(
            conv(8, 4, stride=2, padding=1), nn.ReLU(), nn.ConvTranspose1d(8, 3, 4, 2, 1)
        ),
        WINDOW,
        "mse",
    ),
    "upsampled 1d": Brought(
        lambda: chain(
            conv(8, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.Upsample(scale_factor=2, mode="linear"),
            nn.Conv1d(8, 3, 3, padding=1),
        ),
        WINDOW,
        "mse",
    ),
    "unfolded frames": window(
        lambda s, x: s.head(s.body(x.unfold(2, 4, 2)).tanh().mean((1, 2))),
        body=nn.Linear(4, 8),
        head=head(),
    ),
    "rnn": recurrent(nn.RNN),
    "gru": recurrent(nn.GRU),
    "gru two layers": recurrent(nn.GRU, num_layers=2),
    "lstm": recurrent(nn.LSTM),
    "lstm both directions": recurrent(nn.LSTM, bidirectional=True),
    "conv then lstm": window(
        lambda s, x: s.head(s.body(s.conv(x).relu().transpose(1, 2))[0].mean(1)),
        conv=conv(),
        body=nn.LSTM(8, 8, batch_first=True),
        head=head(),
    ),
    "cell in a loop": steps(unrolled, cell=nn.GRUCell(6, 8), head=head()),
    "gated unit": steps(
        gated_unit,
        start=torch.randn(1, 8),
        forget=nn.Linear(14, 8),
        new=nn.Linear(14, 8),
        head=head(),
    ),
    "attention": attention(),
    "causal attention": attention(causal=True),
    "rotary attention": attention(turn=True),
    "scaled dot product": steps(
        lambda s, x: s.head(
            joined(
                nnf.scaled_dot_product_attention(
                    *(heads(p) for p in s.qkv(x).chunk(3, -1)), is_causal=True
                )
            ).mean(1)
        ),
        qkv=nn.Linear(6, 24),
        head=head(),
    ),
    "multihead attention": steps(
        lambda s, x: s.head(
            s.body(s.embed(x), s.embed(x), s.embed(x), need_weights=False)[0].mean(1)
        ),
        embed=nn.Linear(6, 8),
        body=nn.MultiheadAttention(8, 2, batch_first=True),
        head=head(),
    ),
    "transformer encoder": steps(
        lambda s, x: s.head(s.body(s.embed(x)).mean(1)),
        embed=nn.Linear(6, 8),
        body=nn.TransformerEncoderLayer(
            8, 2, 16, activation="gelu", batch_first=True, norm_first=True
        ),
        head=head(),
    ),
    "linear attention": steps(linear_attention, qkv=nn.Linear(6, 24), head=head()),
    "sinusoids": Brought(with_sinusoids, STEPS),
    "relative positions": steps(
        relative, embed=nn.Linear(6, 8), qkv=nn.Linear(8, 24), bias=torch.randn(13, 2), head=head()
    )._replace(folding=False),
    "alibi": steps(alibi, embed=nn.Linear(6, 8), qkv=nn.Linear(8, 24), head=head()),
    "class token": steps(
        class_token,
        token=torch.randn(1, 1, 8),
        places=torch.randn(1, 8, 8),
        embed=nn.Linear(6, 8),
        qkv=nn.Linear(8, 24),
        head=head(),
    ),
    "latent queries": steps(
        latents, queries=torch.randn(1, 3, 8), kv=nn.Linear(6, 16), head=head(24)
    ),
    "each step labeled": Brought(
        lambda: Net(
            lambda s, x: s.head(attended(s, s.embed(x))),
            embed=nn.Linear(6, 8),
            qkv=nn.Linear(8, 24),
            head=head(),
        ),
        STEPS,
    ),
    "text convolution": text(
        lambda s, x: s.head(
            torch.cat([c(s.table(x).transpose(1, 2)).relu().amax(-1) for c in s.convs], 1)
        ),
        table=nn.Embedding(11, 6),
        convs=nn.ModuleList(nn.Conv1d(6, 4, k) for k in (2, 3)),
        head=head(),
    ),
    "bag of words": text(
        lambda s, x: s.head(s.table(x).mean(1)), table=nn.Embedding(11, 8), head=head()
    ),
    "padded text": text(
        padded_text, table=nn.Embedding(11, 8, padding_idx=0), qkv=nn.Linear(8, 24), head=head()
    ),
    "last real token": text(
        last_real, table=nn.Embedding(11, 8), body=nn.Linear(8, 8), head=head()
    ),
    "tied language model": Brought(
        lambda: Net(
            lambda s, x: torch.tanh(s.body(s.table(x))) @ s.table.weight.T,
            table=nn.Embedding(11, 8),
            body=nn.Linear(8, 8),
        ),
        (7,),
        tokens=11,
    ),
}
