"""Nets that people bring for images: blocks of the known families, decoders, pads and pools."""

import torch
from small_net import CLASSES, Brought, Net, chain
from torch import nn
from torch.nn import functional as nnf

IMAGE = (3, 8, 8)


def image(function: object, loss: str = "cross_entropy", **parts: object) -> Brought:
    return Brought(lambda: Net(function, **parts), IMAGE, loss)  # type: ignore[arg-type]


def conv(wide_in: int = 3, wide: int = 8, kernel: int = 3, **settings: object) -> nn.Conv2d:
    settings.setdefault("padding", kernel // 2)
    return nn.Conv2d(wide_in, wide, kernel, **settings)  # type: ignore[arg-type]


def unit(
    wide_in: int = 3,
    wide: int = 8,
    kernel: int = 3,
    act: type[nn.Module] = nn.ReLU,
    **settings: object,
) -> nn.Sequential:
    return chain(conv(wide_in, wide, kernel, bias=False, **settings), nn.BatchNorm2d(wide), act())


def pooled(wide: int = 8) -> nn.Sequential:
    return chain(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(wide, CLASSES))


def classifier(*parts: object, wide: int = 8) -> Brought:
    """Parts are given as functions, so that each net has weights of its own."""
    return Brought(lambda: chain(*(part() for part in parts), pooled(wide)), IMAGE)  # type: ignore[operator]


class Excited(nn.Module):
    """Squeeze and excite (Hu et al., arXiv:1709.01507)."""

    def __init__(self, gate: type[nn.Module] = nn.Sigmoid) -> None:
        super().__init__()
        self.down, self.up, self.gate = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1), gate()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.gate(self.up(torch.relu(self.down(nnf.adaptive_avg_pool2d(x, 1)))))


class Residual(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.body(x)


class ChannelsLast(nn.Module):
    """A layer norm over the channels of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def inverted(act: type[nn.Module], *more: nn.Module) -> nn.Module:
    body = chain(
        unit(8, 16, 1, act),
        unit(16, 16, 3, act, groups=16),
        conv(16, 8, 1, bias=False),
        nn.BatchNorm2d(8),
    )
    return Residual(chain(*body, *more))


def shuffled(s: Net, x: torch.Tensor) -> torch.Tensor:
    h = s.first(x)
    left, right = h.chunk(2, 1)
    h = torch.cat([left, s.branch(right)], 1)
    n, c, y, w = h.shape
    return s.head(h.reshape(n, 2, c // 2, y, w).transpose(1, 2).reshape(n, c, y, w))


def dense(s: Net, x: torch.Tensor) -> torch.Tensor:
    for layer in s.layers:
        x = torch.cat([x, layer(x)], 1)
    return s.head(x)


def fire(s: Net, x: torch.Tensor) -> torch.Tensor:
    h = torch.relu(s.squeeze(x))
    return s.head(torch.cat([torch.relu(s.one(h)), torch.relu(s.three(h))], 1))


def channel_and_place(s: Net, x: torch.Tensor) -> torch.Tensor:
    """Attention to channels, then to places, by means and maxima (CBAM)."""
    h = torch.relu(s.first(x))
    h = h * torch.sigmoid(
        s.channels(h.mean((2, 3), True)) + s.channels(h.amax((2, 3), keepdim=True))
    )
    both = torch.cat([h.mean(1, keepdim=True), h.max(1, keepdim=True).values], 1)
    return s.head(h * torch.sigmoid(s.places(both)))


def u_net(up: nn.Module, wide: int) -> Brought:
    def forward(s: Net, x: torch.Tensor) -> torch.Tensor:
        high = s.down(x)
        low = s.deep(nnf.max_pool2d(high, 2))
        return s.last(torch.cat([high, s.up(low)], 1))

    return image(forward, "bce", down=unit(), deep=unit(8, 8), up=up, last=conv(8 + wide, 1, 1))


def patches(s: Net, x: torch.Tensor) -> torch.Tensor:
    h = s.patch(x).flatten(2).transpose(1, 2)
    h = torch.cat([s.token.expand(x.shape[0], -1, -1), h], 1) + s.places
    h = h + s.body(s.norm(h), s.norm(h), s.norm(h), need_weights=False)[0]
    return s.head(h[:, 0])


def mixer(s: Net, x: torch.Tensor) -> torch.Tensor:
    h = s.patch(x).flatten(2).transpose(1, 2)
    h = h + s.tokens(s.norm(h).transpose(1, 2)).transpose(1, 2)
    return s.head((h + s.channels(s.norm2(h))).mean(1))


def windows(s: Net, x: torch.Tensor) -> torch.Tensor:
    """Attention in shifted windows of 4x4."""
    h = torch.roll(s.patch(x), (-2, -2), (2, 3))
    h = h.reshape(-1, 8, 2, 4, 2, 4).permute(0, 2, 4, 3, 5, 1).reshape(-1, 16, 8)
    q, k, v = s.qkv(h).chunk(3, -1)
    h = (q @ k.transpose(1, 2) / 8**0.5).softmax(-1) @ v
    h = h.reshape(-1, 2, 2, 4, 4, 8).permute(0, 5, 1, 3, 2, 4).reshape(-1, 8, 8, 8)
    return s.head(torch.roll(h, (2, 2), (2, 3)))


def with_coordinates(s: Net, x: torch.Tensor) -> torch.Tensor:
    place = torch.linspace(-1, 1, 8)
    grid = torch.stack(torch.meshgrid(place, place, indexing="ij"))
    return s.head(torch.relu(s.conv(torch.cat([x, grid.expand(x.shape[0], -1, -1, -1)], 1))))


def dilated(s: Net, x: torch.Tensor) -> torch.Tensor:
    """Branches of several dilations and one of the mean (ASPP)."""
    mean = nnf.interpolate(s.mean(nnf.adaptive_avg_pool2d(x, 1)), size=(8, 8), mode="nearest")
    return s.head(torch.cat([*(branch(x) for branch in s.branches), mean], 1))


def blurred(s: Net, x: torch.Tensor) -> torch.Tensor:
    kernel = torch.tensor([1.0, 2.0, 1.0])
    kernel = (kernel[:, None] * kernel / 16).expand(8, 1, 3, 3)
    h = nnf.pad(torch.relu(s.conv(x)), (1, 1, 1, 1), mode="reflect")
    return s.head(nnf.conv2d(h, kernel, stride=2, groups=8))


def spatial_softmax(s: Net, x: torch.Tensor) -> torch.Tensor:
    """Where each channel looks, as coordinates."""
    weight = s.conv(x).flatten(2).softmax(-1).reshape(-1, 8, 8, 8)
    place = torch.linspace(-1, 1, 8)
    return s.head(torch.cat([(weight.sum(2) * place).sum(-1), (weight.sum(3) * place).sum(-1)], 1))


def transformed(s: Net, x: torch.Tensor) -> torch.Tensor:
    """A spatial transformer: a learned warp."""
    theta = s.theta(x.flatten(1)).reshape(-1, 2, 3)
    return s.head(
        s.conv(
            nnf.grid_sample(x, nnf.affine_grid(theta, list(x.shape), False), align_corners=False)
        )
    )


def generalized_mean(s: Net, x: torch.Tensor) -> torch.Tensor:
    return s.head(s.conv(x).clamp(min=1e-3).pow(s.p).mean((2, 3)).pow(1 / s.p))


torch.manual_seed(1)  # most parts are made right here

NETS_FOR_IMAGES: dict[str, Brought] = {
    "lenet": Brought(
        lambda: chain(
            conv(3, 6),
            nn.Tanh(),
            nn.AvgPool2d(2),
            conv(6, 8),
            nn.Tanh(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(32, CLASSES),
        ),
        IMAGE,
    ),
    "vgg": classifier(unit, lambda: unit(8), lambda: nn.MaxPool2d(2), lambda: unit(8)),
    "residual block": classifier(unit, lambda: Residual(chain(*unit(8), *unit(8))), nn.ReLU),
    "residual before activation": classifier(
        conv,
        lambda: Residual(
            chain(nn.BatchNorm2d(8), nn.ReLU(), conv(8), nn.BatchNorm2d(8), nn.ReLU(), conv(8))
        ),
    ),
    "grouped residual": classifier(
        unit, lambda: Residual(chain(*unit(8, 8, 1), *unit(8, 8, 3, groups=4), conv(8, 8, 1)))
    ),
    "inverted residual": classifier(lambda: unit(act=nn.ReLU6), lambda: inverted(nn.ReLU6)),
    "inverted residual, excited": classifier(
        lambda: unit(act=nn.Hardswish), lambda: inverted(nn.Hardswish, Excited(nn.Hardsigmoid))
    ),
    "inverted residual, silu": classifier(
        lambda: unit(act=nn.SiLU), lambda: inverted(nn.SiLU, Excited())
    ),
    "separable": classifier(
        lambda: conv(3, 3, groups=3), lambda: unit(3, 8, 1), lambda: nn.MaxPool2d(3, 2, 1)
    ),
    "shuffled channels": image(
        shuffled,
        first=unit(),
        branch=chain(unit(4, 4, 1), conv(4, 4, groups=4), unit(4, 4, 1)),
        head=pooled(),
    ),
    "dense block": image(dense, layers=nn.ModuleList([unit(3, 4), unit(7, 4)]), head=pooled(11)),
    "fire": image(fire, squeeze=conv(3, 4, 1), one=conv(4, 4, 1), three=conv(4, 4), head=pooled()),
    "inception": image(
        lambda s, x: s.head(
            torch.cat(
                [
                    s.one(x),
                    s.three(x),
                    s.pool(nnf.max_pool2d(x, 3, 1, 1)),
                    nnf.avg_pool2d(x, 3, 1, 1),
                ],
                1,
            )
        ),
        one=unit(3, 4, 1),
        three=unit(3, 4),
        pool=unit(3, 4, 1),
        head=pooled(15),
    ),
    "squeeze and excite": classifier(conv, nn.ReLU, Excited),
    "channel and place": image(
        channel_and_place,
        first=conv(),
        channels=chain(nn.Conv2d(8, 4, 1), nn.ReLU(), nn.Conv2d(4, 8, 1)),
        places=conv(2, 1, 3),
        head=pooled(),
    ),
    "u-net transposed": u_net(nn.ConvTranspose2d(8, 4, 2, 2), 4),
    "u-net bilinear": u_net(nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True), 8),
    "u-net nearest": u_net(nn.Upsample(scale_factor=2), 8),
    "segmentation": image(
        lambda s, x: (
            nnf.interpolate(s.last(s.body(x)), size=(8, 8), mode="bilinear")
            .flatten(2)
            .transpose(1, 2)
        ),
        body=unit(stride=2),
        last=nn.Conv2d(8, CLASSES, 1),
    ),
    "super-resolution": Brought(
        lambda: chain(conv(), nn.PReLU(), conv(8, 12), nn.PixelShuffle(2)), IMAGE, "mse"
    ),
    "space to depth": classifier(lambda: nn.PixelUnshuffle(2), lambda: conv(12, 8), nn.ReLU),
    "convolutional autoencoder": Brought(
        lambda: chain(
            conv(stride=2),
            nn.ReLU(),
            conv(8, 4, stride=2),
            nn.ReLU(),
            nn.ConvTranspose2d(4, 8, 3, 2, 1, 1),
            nn.ReLU(),
            nn.ConvTranspose2d(8, 3, 4, 2, 1),
            nn.Sigmoid(),
        ),
        IMAGE,
        "mse",
    ),
    "dilated branches": image(
        dilated,
        branches=nn.ModuleList(conv(3, 4, padding=d, dilation=d) for d in (1, 2)),
        mean=nn.Conv2d(3, 4, 1),
        head=pooled(12),
    ),
    "convnext": classifier(
        lambda: conv(3, 8, 4, stride=4, padding=0),
        lambda: Residual(
            chain(
                conv(8, 8, groups=8),
                ChannelsLast(),
                nn.Conv2d(8, 16, 1),
                nn.GELU(),
                nn.Conv2d(16, 8, 1),
            )
        ),
    ),
    "vision transformer": image(
        patches,
        patch=nn.Conv2d(3, 8, 4, 4),
        token=torch.randn(1, 1, 8),
        places=torch.randn(1, 5, 8),
        norm=nn.LayerNorm(8),
        body=nn.MultiheadAttention(8, 2, batch_first=True),
        head=nn.Linear(8, CLASSES),
    ),
    "mixer": image(
        mixer,
        patch=nn.Conv2d(3, 8, 4, 4),
        norm=nn.LayerNorm(8),
        norm2=nn.LayerNorm(8),
        head=nn.Linear(8, CLASSES),
        tokens=chain(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 4)),
        channels=chain(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8)),
    ),
    "shifted windows": image(windows, patch=conv(), qkv=nn.Linear(8, 24), head=pooled()),
    "coordinates": image(with_coordinates, conv=conv(5), head=pooled()),
    "reflected pads": classifier(
        lambda: conv(padding_mode="reflect"),
        nn.ReLU,
        lambda: nn.ReflectionPad2d((1, 2, 0, 3)),
        lambda: conv(8),
    ),
    "replicated pads": classifier(
        lambda: conv(padding_mode="replicate"),
        nn.ReLU,
        lambda: nn.ReplicationPad2d(2),
        lambda: conv(8),
    ),
    "circular pads": classifier(
        lambda: conv(padding_mode="circular"), nn.ReLU, lambda: conv(8, padding_mode="circular")
    ),
    "constant pads": classifier(
        lambda: nn.ConstantPad2d(1, 0.5),
        lambda: conv(padding=0),
        nn.ReLU,
        lambda: nn.ZeroPad2d((-1, 1, 0, 2)),
        lambda: conv(8),
    ),
    "adaptive pools": Brought(
        lambda: chain(
            conv(),
            nn.AdaptiveAvgPool2d((2, 4)),
            nn.AdaptiveMaxPool2d(2),
            nn.Flatten(),
            nn.Linear(32, CLASSES),
        ),
        IMAGE,
    ),
    "global maximum": Brought(
        lambda: chain(conv(), nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES)), IMAGE
    ),
    "group norm": classifier(conv, lambda: nn.GroupNorm(2, 8), nn.ReLU),
    "instance norm": classifier(conv, lambda: nn.InstanceNorm2d(8, affine=True), nn.ReLU),
    "local response norm": classifier(conv, nn.ReLU, lambda: nn.LocalResponseNorm(3, alpha=0.1)),
    "deviation of an image": image(
        lambda s, x: s.head(torch.cat([s.conv(x).mean((2, 3)), s.conv(x).std((2, 3))], 1)),
        conv=conv(),
        head=nn.Linear(16, CLASSES),
    ),
    "blurred pool": image(blurred, conv=conv(), head=pooled()),
    "power pool": classifier(conv, nn.Softplus, lambda: nn.LPPool2d(2, 2)),
    "generalized mean": image(
        generalized_mean, conv=conv(), p=torch.full((1,), 3.0), head=nn.Linear(8, CLASSES)
    ),
    "spatial softmax": image(spatial_softmax, conv=conv(), head=nn.Linear(16, CLASSES)),
    "mirrored": image(
        lambda s, x: s.head(torch.relu(s.conv(x)) + torch.relu(s.conv(x.flip(3))).flip(3)),
        conv=conv(),
        head=pooled(),
    ),
    "spatial transformer": image(transformed, theta=nn.Linear(192, 6), conv=conv(), head=pooled()),
    "unfolded patches": image(
        lambda s, x: s.head(s.body(nnf.unfold(x, 4, stride=4).transpose(1, 2)).relu().mean(1)),
        body=nn.Linear(48, 8),
        head=nn.Linear(8, CLASSES),
    ),
    "rows by a recurrence": image(
        lambda s, x: s.head(s.body(x.permute(0, 2, 1, 3).flatten(2))[0][:, -1]),
        body=nn.LSTM(24, 8, batch_first=True),
        head=nn.Linear(8, CLASSES),
    ),
    "spatial dropout": classifier(conv, nn.ReLU, nn.Dropout2d, lambda: conv(8), nn.Mish),
    "embedded in a sphere": image(
        lambda s, x: (
            nnf.linear(nnf.normalize(s.conv(x).relu().mean((2, 3))), nnf.normalize(s.centers)) * 8
        ),
        conv=conv(),
        centers=torch.randn(CLASSES, 8),
    )._replace(folding=False),
}
