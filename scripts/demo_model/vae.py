"""The Wan video VAE with the published parameter names, for training whole clips at once.

Every convolution is causal, so a whole clip gives what a stream gives. Frames lie one behind the other, [B*T, C, H, W]: a convolution over three frames
is a 2-D one over three times the channels, which a CPU does several times faster.

Parts of the network stay exactly zero, so that an exporter may leave them out: most residual branches of the two finest stages, the attention, and the
older taps of every convolution in these stages.
"""
import torch
import torch.nn.functional as F
from torch import nn

LATENTS = 16
# Constants of the published pipeline: latents = (mean of the encoder - MEAN) / STD.
MEAN = (-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508, 0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921)
STD = (2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743, 3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160)

# Modules by their published number. "idle" adds nothing; "flat" sees one frame.
IDLE = {"encoder.downsamples": (0, 1, 4), "decoder.upsamples": (5, 6, 9, 10, 12, 13, 14)}
FLAT = {"encoder.downsamples": range(0, 6), "decoder.upsamples": range(8, 15)}


class Conv(nn.Module):
    """A causal convolution. `taps` frames are seen by the published weight; a flat one sees the last only."""

    def __init__(self, cin, cout, size, taps=None, flat=False):
        super().__init__()
        taps = size if taps is None else taps
        self.weight = nn.Parameter(torch.zeros(cout, cin, taps, size, size))
        self.bias = nn.Parameter(torch.zeros(cout))
        self.flat = flat or taps == 1

    def forward(self, x, t):
        w, pad = self.weight, self.weight.shape[-1] // 2
        if self.flat or t == 1:
            return F.conv2d(x, w[:, :, -1].contiguous(memory_format=torch.channels_last), self.bias, padding=pad)
        y = x.unflatten(0, (-1, t))
        y = torch.cat([torch.zeros_like(y[:, :1])] * 2 + [y], 1)
        y = torch.cat([y[:, i : i + t] for i in range(3)], 2).flatten(0, 1).contiguous(memory_format=torch.channels_last)
        return F.conv2d(y, w.transpose(1, 2).flatten(1, 2).contiguous(memory_format=torch.channels_last), self.bias, padding=pad)


class Norm(nn.Module):
    def __init__(self, channels, tail=(1, 1, 1)):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels, *tail))

    def forward(self, x):
        length = torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp(min=1e-12)
        return x * (x.shape[1] ** 0.5 / length) * self.gamma.view(1, -1, 1, 1)


class Residual(nn.Module):
    def __init__(self, cin, cout, idle=False, flat=False):
        super().__init__()
        self.residual = nn.ModuleList([Norm(cin), nn.SiLU(), Conv(cin, cout, 3, flat=flat), Norm(cout), nn.SiLU(), nn.Identity(), Conv(cout, cout, 3, flat=flat)])
        if cin != cout:
            self.shortcut = Conv(cin, cout, 1)
        self.idle = idle

    def forward(self, x, t):
        short = self.shortcut(x, t) if hasattr(self, "shortcut") else x
        if self.idle:
            return short
        r = self.residual
        return short + r[6](F.silu(r[3](r[2](F.silu(r[0](x)), t))), t)


class Attention(nn.Module):
    """Stays zero: `proj` adds nothing."""

    def __init__(self, channels):
        super().__init__()
        self.norm = Norm(channels, (1, 1))
        self.to_qkv, self.proj = nn.Conv2d(channels, 3 * channels, 1), nn.Conv2d(channels, channels, 1)
        for p in self.parameters():
            nn.init.zeros_(p)
        self.requires_grad_(False)

    def forward(self, x, t):
        return x


class Down(nn.Module):
    """Halves rows and columns, and with `time_conv` the frames after the first."""

    def __init__(self, channels, time):
        super().__init__()
        self.resample = nn.ModuleList([nn.Identity(), nn.Conv2d(channels, channels, 3, stride=2)])
        if time:
            self.time_conv = nn.Conv3d(channels, channels, (3, 1, 1))

    def forward(self, x, t):
        x = self.resample[1](F.pad(x, (0, 1, 0, 1)))
        if not hasattr(self, "time_conv") or t == 1:
            return x, t
        y = x.unflatten(0, (-1, t))
        w = self.time_conv.weight[..., 0, 0]
        mixed = sum(torch.einsum("btchw,oc->btohw", y[:, i : t - 2 + i : 2], w[:, :, i]) for i in range(3)) + self.time_conv.bias.view(1, 1, -1, 1, 1)
        return torch.cat([y[:, :1], mixed], 1).flatten(0, 1), 1 + (t - 1) // 2


class Up(nn.Module):
    """Doubles rows and columns, and with `time_conv` the frames after the first."""

    def __init__(self, channels, time):
        super().__init__()
        self.resample = nn.ModuleList([nn.Identity(), nn.Conv2d(channels, channels // 2, 3, padding=1)])
        if time:
            self.time_conv = nn.Conv3d(channels, 2 * channels, (3, 1, 1))

    def forward(self, x, t):
        if hasattr(self, "time_conv") and t > 1:
            y = x.unflatten(0, (-1, t))
            z = torch.cat([torch.zeros_like(y[:, :1])] * 2 + [y[:, 1:]], 1)
            w = self.time_conv.weight[..., 0, 0]
            mixed = sum(torch.einsum("btchw,oc->btohw", z[:, i : t - 1 + i], w[:, :, i]) for i in range(3)) + self.time_conv.bias.view(1, 1, -1, 1, 1)
            pairs = torch.stack(mixed.chunk(2, 2), 2).flatten(1, 2)
            x, t = torch.cat([y[:, :1], pairs], 1).flatten(0, 1), 1 + 2 * (t - 1)
        return self.resample[1](F.interpolate(x, scale_factor=2.0, mode="nearest-exact")), t


def run(modules, x, t):
    for m in modules:
        x = m(x, t)
        if isinstance(x, tuple):
            x, t = x
    return x, t


def _half(first, stages, name, middle, norm, last):
    half = nn.Module()
    half.conv1 = first
    half.middle = nn.ModuleList([Residual(middle, middle), Attention(middle), Residual(middle, middle)])
    setattr(half, name, nn.ModuleList(stages))
    half.head = nn.ModuleList([Norm(norm), nn.SiLU(), last])
    return half


class Vae(nn.Module):
    """Sizes: [B*T, 3, H, W] in -1..1 with T = 1 + 4k frames, to latents [B*(1+k), 16, H/8, W/8] and back."""

    def __init__(self, dim):
        super().__init__()
        def residual(name, i, a, b):
            return Residual(a, b, idle=i in IDLE[name], flat=i in FLAT[name])
        width, name, stages = [dim, dim, 2 * dim, 4 * dim, 4 * dim], "encoder.downsamples", []
        for i in range(4):
            stages += [residual(name, len(stages), width[i], width[i + 1])]
            stages += [residual(name, len(stages), width[i + 1], width[i + 1])]
            stages += [Down(width[i + 1], time=i > 0)] if i < 3 else []
        self.encoder = _half(Conv(3, dim, 3, flat=True), stages, "downsamples", 4 * dim, 4 * dim, Conv(4 * dim, 2 * LATENTS, 3))
        width, name, stages = [4 * dim, 4 * dim, 4 * dim, 2 * dim, dim], "decoder.upsamples", []
        for i in range(4):
            into = width[i] if i == 0 else width[i] // 2
            for a, b in ((into, width[i + 1]), (width[i + 1], width[i + 1]), (width[i + 1], width[i + 1])):
                stages += [residual(name, len(stages), a, b)]
            stages += [Up(width[i + 1], time=i < 2)] if i < 3 else []
        self.decoder = _half(Conv(LATENTS, 4 * dim, 3), stages, "upsamples", 4 * dim, dim, Conv(dim, 3, 3, flat=True))
        self.conv1, self.conv2 = Conv(2 * LATENTS, 2 * LATENTS, 1), Conv(LATENTS, LATENTS, 1)

    def encode(self, x, t):
        e = self.encoder
        x, t = run(e.downsamples, e.conv1(x, t), t)
        x, t = run(e.middle, x, t)
        return self.conv1(e.head[2](F.silu(e.head[0](x)), t), t)[:, :LATENTS]

    def decode(self, z, t):
        d = self.decoder
        x, t = run(d.middle, d.conv1(self.conv2(z, t), t), t)
        x, t = run(d.upsamples, x, t)
        return d.head[2](F.silu(d.head[0](x)), t)

    @torch.no_grad()
    def rest(self):
        """Sets to zero what is to stay zero."""
        for m in self.modules():
            if isinstance(m, Residual) and m.idle:
                m.residual[6].weight.zero_()
                m.residual[6].bias.zero_()
            if isinstance(m, Conv) and m.flat:
                m.weight[:, :, :-1] = 0
        return self

    @torch.no_grad()
    def fold(self, mean, std):
        """Folds the statistics of the trained latents into the outer convolutions: the published constants then give latents of mean 0 and deviation 1."""
        m, s = torch.tensor(MEAN), torch.tensor(STD)
        self.conv1.weight[:LATENTS] *= (s / std).view(-1, 1, 1, 1, 1)
        self.conv1.bias[:LATENTS] = (self.conv1.bias[:LATENTS] - mean) / std * s + m
        self.conv2.bias += self.conv2.weight[:, :, 0, 0, 0] @ (mean - m / s * std)
        self.conv2.weight *= (std / s).view(1, -1, 1, 1, 1)


def load(file):
    """Loads a published file."""
    saved = torch.load(file, weights_only=True)
    vae = Vae(saved["decoder.head.0.gamma"].shape[0])
    vae.load_state_dict({k: v.float() for k, v in saved.items()})
    return vae


def normalised(vae, x, t):
    """Encodes with a folded VAE to latents as the pipeline sees them."""
    return (vae.encode(x, t) - torch.tensor(MEAN).view(1, -1, 1, 1)) / torch.tensor(STD).view(1, -1, 1, 1)


def pictures(vae, z, t):
    """Decodes normalised latents to 0..1."""
    x = vae.decode(z * torch.tensor(STD).view(1, -1, 1, 1) + torch.tensor(MEAN).view(1, -1, 1, 1), t)
    return (x.clamp(-1, 1) + 1) / 2


# ------------------------------------------------------------------ start
def _ridge(a, y, eps=1e-3):
    """Least squares of y [n, q] on a [n, p]: weight [q, p] and bias [q]."""
    am, ym = a.mean(0), y.mean(0)
    a, y = a - am, y - ym
    w = torch.linalg.solve(a.T @ a / len(a) + eps * torch.eye(a.shape[1]), a.T @ y / len(a)).T
    return w, ym - w @ am


def _components(u, k):
    """The k largest principal components of u [n, p] as rows; weak ones are lifted a little. And the mean."""
    m = u.mean(0)
    value, vector = torch.linalg.eigh((u - m).T @ (u - m) / len(u))
    value, vector = value.flip(0)[:k].clamp(min=1e-6), vector.flip(1)[:, :k]
    return vector.T * (value / value.mean()).pow(-0.25)[:, None], m


@torch.no_grad()
def start(vae, x):
    """Starts from pictures x [B, 3, H, W]: strided convolutions are principal components, heads are least squares. A usual start needs hundreds of steps for this."""
    for name, m in vae.named_modules():
        if "middle.1" in name or not isinstance(m, (Conv, nn.Conv2d, nn.Conv3d)):
            continue
        w = m.weight
        out, cin = w.shape[:2]
        nn.init.zeros_(m.bias)
        if name.endswith("time_conv"):
            w.normal_(0, 0.05 / (3 * cin) ** 0.5)
            w[:, :, -1, 0, 0] += torch.eye(cin).repeat(out // cin, 1)
            if "encoder" in name:  # without a part of what changed, encoder and decoder wait for each other, and all frames of a latent look alike
                change = 0.3 * nn.init.orthogonal_(torch.empty(out, cin))
                w[:, :, -2, 0, 0] += change
                w[:, :, -1, 0, 0] -= change
        elif w.shape[-1] == 1:
            nn.init.orthogonal_(w.view(out, cin))
        elif isinstance(m, nn.Conv2d):
            smooth = torch.tensor([1.0, 2, 1])[:, None] * torch.tensor([1.0, 2, 1]) / 16
            w.copy_(nn.init.orthogonal_(torch.empty(out, cin))[:, :, None, None] * smooth)
        else:
            w.normal_(0, (0.1 if "residual.6" in name else 1.0) / (cin * 9) ** 0.5)
            w[:, :, :2] *= 0.1
    vae.rest()
    e, d = vae.encoder, vae.decoder
    e.conv1.weight.mul_(0.3)
    e.conv1.weight[:3] = 0
    for i in range(3):
        e.conv1.weight[i, i, 2, 1, 1] = 1.0
    h = e.conv1(x, 1)
    for m in e.downsamples:
        if isinstance(m, Down):
            conv = m.resample[1]
            p, mean = _components(F.unfold(h, 2, stride=2).transpose(1, 2).flatten(0, 1), conv.weight.shape[0])
            conv.weight.zero_()
            conv.weight[:, :, :2, :2] = p.view(-1, h.shape[1], 2, 2)
            conv.bias.copy_(-p @ mean)
        h = run([m], h, 1)[0]
    h = run(e.middle, h, 1)[0]
    rows = lambda v: v.permute(0, 2, 3, 1).flatten(0, 2)
    p, mean = _components(rows(h), LATENTS)
    z = (rows(h) - mean) @ p.T
    w, b = _ridge(rows(F.silu(e.head[0](h))), z / z.std(0))
    e.head[2].weight[:LATENTS] = 0
    e.head[2].weight[:LATENTS, :, 2, 1, 1], e.head[2].bias[:LATENTS] = w, b
    for c in (vae.conv1, vae.conv2):
        c.weight.copy_(torch.eye(c.weight.shape[0]).view_as(c.weight))
    d.conv1.weight.mul_(0.1)
    d.conv1.weight[:, :, 2, 1, 1] += nn.init.orthogonal_(torch.empty(d.conv1.weight.shape[:2]))
    h, up = run(d.middle, d.conv1(vae.encode(x, 1), 1), 1)[0], d.upsamples
    h = run(up[:11], h, 1)[0]
    # To full size: +RGB, -RGB and a constant, so that the norm keeps the scale; then the rest.
    c = up[11].resample[1]
    u = F.unfold(F.interpolate(h, scale_factor=2.0, mode="nearest-exact"), 3, padding=1).transpose(1, 2).flatten(0, 1)
    w, b = _ridge(u, rows(x))
    for i, s in ((0, 1), (3, -1)):
        c.weight[i : i + 3], c.bias[i : i + 3] = s * w.view(3, -1, 3, 3), s * b
    c.weight[6], c.bias[6] = 0, 2.0
    c.weight[7:] *= 0.3 / (c.weight[7:].flatten(1) @ u.T).std()
    h = run(up[11:], h, 1)[0]
    u = F.unfold(F.silu(d.head[0](h)), 3, padding=1).transpose(1, 2).flatten(0, 1)
    w, b = _ridge(u, rows(x))
    d.head[2].weight.mul_(0.05)
    d.head[2].weight[:, :, 2], d.head[2].bias[:] = w.view(3, -1, 3, 3), b
