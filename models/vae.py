"""The KL autoencoder of latent diffusion (arXiv 2112.10752), SDXL's layout; parameter names as in ldm's checkpoints."""

from __future__ import annotations

from mindspore import Tensor, nn

from mindpangu import ops
from mindpangu.layout import VAELevel, vae_layout
from mindpangu.models.layers import Computing, Conv2d, GroupNorm, GroupNormSiLU, Upsample, conv1x1, conv3x3
from mindpangu.spec import VAESpec

EPS = 1e-6
LOGVAR_RANGE = (-30.0, 20.0)


class ResnetBlock(nn.Cell):
    """x + conv(SiLU(norm(conv(SiLU(norm(x)))))), without time embedding."""

    def __init__(self, in_channels: int, out_channels: int, groups: int) -> None:
        super().__init__()
        self.norm1 = GroupNormSiLU(in_channels, groups, EPS)
        self.conv1 = conv3x3(in_channels, out_channels)
        self.norm2 = GroupNormSiLU(out_channels, groups, EPS)
        self.conv2 = conv3x3(out_channels, out_channels, init="zeros")
        self.changes_width = in_channels != out_channels
        if self.changes_width:
            self.nin_shortcut = conv1x1(in_channels, out_channels)

    def construct(self, x: Tensor) -> Tensor:
        h = self.conv2(self.norm2(self.conv1(self.norm1(x))))
        return (self.nin_shortcut(x) if self.changes_width else x) + h


class AttnBlock(nn.Cell):
    """Single-head self-attention over all positions, through 1×1 convolutions."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = GroupNorm(channels, groups, EPS)
        self.q = conv1x1(channels, channels)
        self.k = conv1x1(channels, channels)
        self.v = conv1x1(channels, channels)
        self.proj_out = conv1x1(channels, channels, init="zeros")

    def construct(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        q, k, v = ops.to_sequence(self.q(y)), ops.to_sequence(self.k(y)), ops.to_sequence(self.v(y))
        out = ops.attention(q, k, v, heads=1, scale=x.shape[1] ** -0.5)
        return x + self.proj_out(ops.from_sequence(out, x.shape))


class Middle(nn.Cell):
    """Residual block, attention, residual block."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels, groups)
        self.attn_1 = AttnBlock(channels, groups)
        self.block_2 = ResnetBlock(channels, channels, groups)

    def construct(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class Downsample(nn.Cell):
    """Halve the size: pad right and bottom by one, 3×3 convolution with stride 2 (ldm's asymmetric padding)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = Conv2d(channels, channels, 3, 2, 0, 1, "he_uniform")

    def construct(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Level(nn.Cell):
    """The residual blocks of one resolution."""

    def __init__(self, level: VAELevel, groups: int) -> None:
        super().__init__()
        self.block = nn.CellList([ResnetBlock(inner, outer, groups) for inner, outer in level.blocks])
        self.resamples = level.resamples

    def through_blocks(self, x: Tensor) -> Tensor:
        """All of them."""
        for block in self.block:
            x = block(x)
        return x


class EncoderLevel(Level):
    """The residual blocks of one resolution and the way down."""

    def __init__(self, level: VAELevel, groups: int) -> None:
        super().__init__(level, groups)
        if self.resamples:
            self.downsample = Downsample(level.outer)

    def construct(self, x: Tensor) -> Tensor:
        x = self.through_blocks(x)
        return self.downsample(x) if self.resamples else x


class DecoderLevel(Level):
    """The residual blocks of one resolution and the way up."""

    def __init__(self, level: VAELevel, groups: int) -> None:
        super().__init__(level, groups)
        if self.resamples:
            self.upsample = Upsample(level.outer)

    def construct(self, x: Tensor) -> Tensor:
        x = self.through_blocks(x)
        return self.upsample(x) if self.resamples else x


class Encoder(nn.Cell):
    """(N, 3, H, W) -> (N, 2·z_channels, H/f, W/f): means and log-variances, before quant_conv."""

    def __init__(self, spec: VAESpec) -> None:
        super().__init__()
        layout = vae_layout(spec)
        self.patch = spec.patch
        self.conv_in = conv3x3(3 * spec.patch**2, layout.encoder[0].blocks[0][0])
        self.down = nn.CellList([EncoderLevel(level, spec.norm_groups) for level in layout.encoder])
        self.mid = Middle(layout.middle, spec.norm_groups)
        self.norm_out = GroupNormSiLU(layout.middle, spec.norm_groups, EPS)
        self.conv_out = conv3x3(layout.middle, 2 * spec.z_channels, init="xavier_uniform")

    def construct(self, x: Tensor) -> Tensor:
        h = self.conv_in(ops.pixel_unshuffle(x, self.patch) if self.patch > 1 else x)
        for level in self.down:
            h = level(h)
        return self.conv_out(self.norm_out(self.mid(h)))


class Decoder(nn.Cell):
    """(N, z_channels, h, w) -> (N, 3, h·f, w·f). `up` is numbered as in ldm: up.0 is the largest resolution."""

    def __init__(self, spec: VAESpec) -> None:
        super().__init__()
        layout = vae_layout(spec)
        self.patch = spec.patch
        self.conv_in = conv3x3(spec.z_channels, layout.middle)
        self.mid = Middle(layout.middle, spec.norm_groups)
        self.up = nn.CellList([DecoderLevel(level, spec.norm_groups) for level in layout.decoder])
        self.norm_out = GroupNormSiLU(layout.decoder[0].outer, spec.norm_groups, EPS)
        self.conv_out = conv3x3(layout.decoder[0].outer, 3 * spec.patch**2, init="xavier_uniform")

    def construct(self, z: Tensor) -> Tensor:
        h = self.mid(self.conv_in(z))
        for i in range(len(self.up) - 1, -1, -1):
            h = self.up[i](h)
        h = self.conv_out(self.norm_out(h))
        return ops.pixel_shuffle(h, self.patch) if self.patch > 1 else h


class AutoencoderKL(Computing):
    """The autoencoder. Pictures are float32 in [-1, 1]; latents are shifted and scaled, as the UNets see them."""

    def __init__(self, spec: VAESpec) -> None:
        super().__init__(wide=True)
        self.spec = spec
        self.encoder = Encoder(spec)
        self.decoder = Decoder(spec)
        self.quant_conv = conv1x1(2 * spec.z_channels, 2 * spec.z_channels)
        self.post_quant_conv = conv1x1(spec.z_channels, spec.z_channels)
        self.scale = Tensor(spec.scale).reshape((1, -1, 1, 1))
        self.shift = Tensor(spec.shift).reshape((1, -1, 1, 1))

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, 3, H, W) -> mean and log-variance, (N, z_channels, H/f, W/f) each, unscaled."""
        mean, logvar = self.quant_conv(self.encoder(self.cast(x))).astype("float32").chunk(2, axis=1)
        return mean, logvar.clip(*LOGVAR_RANGE)

    def reconstruct(self, z: Tensor) -> Tensor:
        """Unscaled latents -> picture."""
        return self.decoder(self.post_quant_conv(self.cast(z))).astype("float32")

    def encode(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) in [-1, 1] -> (N, z_channels, H/f, W/f): the posterior's mean, shifted and scaled."""
        mean, _ = self.posterior(x)
        return (mean - self.shift) * self.scale

    def decode(self, latents: Tensor) -> Tensor:
        """(N, z_channels, h, w) -> (N, 3, h·f, w·f), about [-1, 1], not clipped."""
        return self.reconstruct(latents / self.scale + self.shift)

    def construct(self, latents: Tensor) -> Tensor:
        return self.decode(latents)
