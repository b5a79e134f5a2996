"""Random access to the images of a shard set: positioned reads, a hash check of every sample, exact pixels.

The index says where each image's bytes lie in its tar, so that nothing is parsed and nothing is read twice. A sample
whose bytes are not the packed ones, or which does not decode, raises CorruptSample; it never reaches training.
"""

from __future__ import annotations

import io
import os
import threading
from collections import OrderedDict

import numpy as np
import simplejpeg
import xxhash
from PIL import Image

from data_shards.command import InputError
from data_shards.faces import FORMATS, MAX_PIXELS, check_depth
from data_shards.manifest import ShardSet, index_problems
from data_shards.remote import of_this_machine

OPEN_FILES = 64
"""Shards kept open by one reader; the window of the training order is smaller."""
_JPEG = b"\xff\xd8\xff"
_FORMATS = tuple(set(FORMATS.values()))


class CorruptSample(RuntimeError):
    """A sample that is not what the manifest says, or that cannot be decoded. Names shard and key."""

    def __init__(self, shard: str, key: str, reason: str) -> None:
        super().__init__(shard, key, reason)
        self.shard, self.key, self.reason = shard, key, reason

    def __str__(self) -> str:
        return f"{self.shard}: sample {self.key!r}: {self.reason}"


class SampleReader:
    """Reads samples of ``shards`` by index, from any number of threads at once.

    ``decode_into`` gives squares of ``image_size`` pixels. An image stored at another size is resized as a whole with
    Pillow's antialiased bicubic filter (what timm evaluates with), an image that is not square loses its aspect
    ratio: face crops are squares, and cutting would lose evidence. EXIF orientation is ignored, alpha is dropped, of
    an animation the first frame is taken. Images above ``max_pixels`` are refused before they are decoded. Where the
    set brings decoded pictures along, these very pixels are taken from there; another size is then a ValueError.
    """

    def __init__(self, shards: ShardSet, *, image_size: int, max_pixels: int = MAX_PIXELS) -> None:
        if image_size < 1:
            raise ValueError(f"image_size={image_size}: expected at least 1")
        if shards.decoded is not None and shards.decoded.pixels.shape[1] != image_size:
            raise ValueError(f"image_size={image_size}: the set's pictures were decoded for another size")
        self.shards, self.image_size, self.max_pixels = shards, image_size, max_pixels
        self._shard, self._xxh3 = shards.column("shard"), shards.column("xxh3")
        self._offset, self._length = shards.column("offset"), shards.column("length")
        problems = index_problems(shards.path, shards.manifest)  # may have been replaced since it was opened
        if problems:
            raise InputError(f"shard set {shards.path}: {problems[0]}; open it again")
        self._files: OrderedDict[int, _File] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, index: int) -> bytes:
        """The packed bytes of image ``index``, checked against their hash. A damaged copy in the cache is fetched once
        more. OSError where this machine, not the sample, is at fault (too many open files, no rights, a full disk)."""
        shard, length = int(self._shard[index]), int(self._length[index])
        try:
            while True:
                file = self._file(shard)
                data = os.pread(file.descriptor, length, int(self._offset[index]))
                if xxhash.xxh3_64_intdigest(data) == int(self._xxh3[index]):
                    return data
                if not self.shards.spoiled(shard, file.descriptor):
                    break
                self._forget(shard, file)
        except OSError as error:
            if of_this_machine(error):
                raise
            raise self.corrupt(index, f"cannot be read: {error.strerror or error}") from error
        found = f"{len(data)} of {length} are left" if len(data) < length else "xxh3 differs"
        raise self.corrupt(index, f"its bytes are not the packed ones ({found})")

    def decode_into(self, index: int, out: np.ndarray) -> None:
        """Write the RGB pixels of sample ``index`` into ``out``, uint8 (image_size, image_size, 3), C-contiguous.

        JPEG pixels are those of Pillow, bit for bit (both are libjpeg-turbo with the exact DCT and upsampling).
        """
        if self.shards.decoded is not None:
            out[...] = self.shards.decoded.pixels[self.shards.decoded.rows[index]]
            return
        data = self.read(index)
        try:
            if not self._decode_jpeg(data, out):
                self._decode_other(data, out)
        except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:  # of the decoders
            raise self.corrupt(index, f"cannot be decoded: {error}") from error

    def corrupt(self, index: int, reason: str) -> CorruptSample:
        """The error for sample ``index``."""
        shard = int(self._shard[index])
        row = index - int(np.searchsorted(self._shard, shard))
        try:
            key = self.shards.column("key", shard)[row]  # keys are read for errors only, not kept
        except (OSError, ValueError):  # the index is gone or broken as well
            key = f"number {row} of the shard"
        return CorruptSample(self.shards.location(shard), str(key), reason)

    def close(self) -> None:
        """Close the files (reads that are under way finish on theirs)."""
        with self._lock:
            self._files.clear()

    def _decode_jpeg(self, data: bytes, out: np.ndarray) -> bool:
        """Decode the usual kinds of JPEG; False for what TurboJPEG does not turn into RGB as Pillow does."""
        if not data.startswith(_JPEG):
            return False
        try:
            height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        except ValueError:  # unusual subsampling or broken: Pillow decodes it or says why not
            return False
        if colours not in ("YCbCr", "Gray", "RGB"):
            return False
        self._check_pixels(width, height)
        if (height, width) == out.shape[:2]:
            simplejpeg.decode_jpeg(data, "RGB", buffer=out)
        else:
            out[...] = self._resize(Image.fromarray(simplejpeg.decode_jpeg(data, "RGB")))
        return True

    def _decode_other(self, data: bytes, out: np.ndarray) -> None:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            self._check_pixels(*image.size)
            check_depth(image.mode)
            out[...] = self._resize(image.convert("RGB"))

    def _check_pixels(self, width: int, height: int) -> None:
        if width * height > self.max_pixels:
            raise ValueError(f"{width} x {height} pixels are more than max_pixels={self.max_pixels}")

    def _resize(self, image: Image.Image) -> Image.Image:
        size = (self.image_size, self.image_size)
        return image if image.size == size else image.resize(size, Image.Resampling.BICUBIC)

    def _file(self, shard: int) -> _File:
        """The open file of a shard, from a small cache of the most recently used."""
        with self._lock:
            if shard in self._files:
                self._files.move_to_end(shard)
                return self._files[shard]
        # Without the lock, as a remote shard is fetched here. Two threads may do it at once: the later one is kept.
        file = _File(self.shards.open_shard(shard, self.close), self.shards.shards[shard]["bytes"])
        with self._lock:
            self._files[shard] = file
            if len(self._files) > OPEN_FILES:
                self._files.popitem(last=False)
        return file

    def _forget(self, shard: int, file: _File) -> None:
        with self._lock:
            if self._files.get(shard) is file:
                del self._files[shard]


class _File:
    """A shard opened for reading. Closed when the last thread that reads from it lets go, never under a read."""

    def __init__(self, descriptor: int, size: int) -> None:
        self.descriptor = descriptor
        found = os.fstat(self.descriptor).st_size
        if found != size:  # cut, or something was appended: do not trust the rest either
            raise OSError(f"the shard has {found} bytes, the manifest says {size}")

    def __del__(self) -> None:
        os.close(self.descriptor)
