"""JPEG compression of batches as tensor operations: what libjpeg's lossy steps do to the pixels, without the bytes.

Colour to YCbCr, chroma at half the size (4:2:0), blocks of 8 x 8 through the discrete cosine transform, division by the
quality's tables, rounding, and all of it back. The Huffman coding that would follow loses nothing. Differs from
libjpeg only by the rounding inside its integer transform.
"""

from __future__ import annotations

import io
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

TO_YCC = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))  # JFIF
TO_RGB = ((1.0, 0.0, 1.402), (1.0, -0.344136, -0.714136), (1.0, 1.772, 0.0))


def compress(planes: Tensor, quality: np.ndarray) -> Tensor:
    """RGB images, float32 (n, 3, height, width) of levels 0 to 255, each after JPEG at ``quality`` (n,), 1 to 100."""
    height, width = planes.shape[2:]
    even = pad(planes, (0, -width % 16, 0, -height % 16), mode="replicate")
    ycc = _mix(even, TO_YCC)
    bright, colours = ycc[:, :1], _halved(ycc[:, 1:])
    tables = torch.from_numpy(quantization(quality)).to(planes.device)
    bright = _through_blocks(bright.round() - 128, tables[:, 0])
    colours = _through_blocks(colours.round(), tables[:, 1])
    colours = interpolate(colours, scale_factor=2, mode="bilinear")  # libjpeg's "fancy upsampling"
    return _mix(torch.cat([bright + 128, colours], dim=1), TO_RGB)[:, :, :height, :width]


def quantization(quality: np.ndarray) -> np.ndarray:
    """Divisors of each quality (n,) for brightness and colours, float32 (n, 2, 8, 8), by libjpeg's scaling."""
    quality = np.asarray(quality, np.int64)[:, None, None, None]
    percent = np.where(quality < 50, 5000 // quality, 200 - 2 * quality)
    return ((_base_tables() * percent + 50) // 100).clip(1, 255).astype(np.float32)


def _mix(planes: Tensor, matrix: tuple) -> Tensor:
    """Each output plane as the weighted sum of the three input planes."""
    return (torch.tensor(matrix, device=planes.device) @ planes.flatten(2)).view_as(planes)


def _halved(planes: Tensor) -> Tensor:
    rows = planes[:, :, ::2] + planes[:, :, 1::2]
    return (rows[..., ::2] + rows[..., 1::2]).mul_(0.25)


def _through_blocks(planes: Tensor, table: Tensor) -> Tensor:
    """Planes (n, c, 8 a, 8 b), rounded to multiples of ``table`` (n, 8, 8) in the cosine basis of each 8 x 8 block."""
    n, _, _, width = planes.shape
    basis, table = _basis(planes.device), table.repeat(1, 1, width // 8)[:, None]
    coefficients = (basis @ planes.reshape(n, -1, 8, width)).view(-1, 8) @ basis.T
    # As libjpeg: eighths, then to the nearest multiple, halves (frequent on even divisors) away from zero.
    steps = coefficients.mul_(8).round_().view(n, -1, 8, width).div_(8 * table).mul_(1 + 1e-6).round_()
    return ((basis.T @ steps.mul_(table)).view(-1, 8) @ basis).round_().view(planes.shape)


@lru_cache(maxsize=4)
def _basis(device: torch.device) -> Tensor:
    """The orthonormal DCT-II of eight values, float32 (8 frequencies, 8 places)."""
    k, x = np.arange(8)[:, None], np.arange(8)
    basis = np.cos((2 * x + 1) * k * np.pi / 16) * np.where(k == 0, np.sqrt(1 / 8), 1 / 2)
    return torch.from_numpy(basis.astype(np.float32)).to(device)


@lru_cache(maxsize=1)
def _base_tables() -> np.ndarray:
    """The standard's example tables (ITU-T T.81, annex K), which are libjpeg's at quality 50; int64 (2, 8, 8)."""
    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (16, 16)).save(file, "JPEG", quality=50)
    tables = Image.open(file).quantization
    return np.array([tables[0], tables[1]], np.int64).reshape(2, 8, 8)
