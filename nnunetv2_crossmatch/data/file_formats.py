"""Checks of the image formats whose readers accept damaged files, found by the first bytes of a file, not by its name.

Each check raises an ordinary exception with the reason; ``file_integrity`` makes it an error for the user. Limit: no
check for PNG and BMP, whose readers refuse what is cut off or has a wrong checksum; no reader notices a changed byte of
uncompressed voxels.
"""

from __future__ import annotations

import gzip
import io
import math
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import nibabel
import SimpleITK

from nnunetv2_crossmatch.errors import InputError, Problem
from nnunetv2_crossmatch.folders import is_file_name

CHUNK_BYTES = 1 << 20
HEADER_BYTES = 1 << 16  # longest text header of an NRRD or MetaImage file
GZIP = b"\x1f\x8b"
GZIP_OR_ZLIB = zlib.MAX_WBITS | 32  # zlib detects which of the two it is
NIFTI_HEADERS = (nibabel.Nifti1Header, nibabel.Nifti2Header)
NIFTI_HEADER_BYTES = 540  # of NIfTI-2, the longer one
GIPL_HEADER_BYTES = 256
GIPL_MAGIC = (719555000, 4026526128, 2968)


def check_content(file: Path) -> None:
    """Check ``file`` as what its content is; a content that is not known is left to the reader.

    Raises:
        InputError: the voxels are in another file that may not be read.
        Exception: the reason why the file is damaged.
    """
    with file.open("rb") as stream:
        start = stream.read(HEADER_BYTES)
        stream.seek(0)
        for is_format, check in FORMATS:
            if is_format(start):
                return check(file, stream)


def check_size(actual: int, expected: int) -> None:
    """Raise ``ValueError`` if fewer bytes exist than the header of the file gives."""
    if actual < expected:
        raise ValueError(f"{actual} of {expected} bytes are there")


def decompressed_size(stream: BinaryIO) -> int:
    """Decompressed size of the gzip or zlib data in the rest of ``stream``; verifies their checksums."""
    decoder, size = zlib.decompressobj(GZIP_OR_ZLIB), 0
    while chunk := stream.read(CHUNK_BYTES):
        size += len(decoder.decompress(chunk))
        if decoder.eof:
            return size
    raise EOFError("the compressed data end before their end-of-stream marker")


def voxel_bytes(file: Path) -> int:
    """Size in bytes of all voxels, according to the header as SimpleITK reads it."""
    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(str(file))
    reader.ReadImageInformation()
    one = SimpleITK.Image([1] * reader.GetDimension(), reader.GetPixelID())
    return math.prod(reader.GetSize()) * reader.GetNumberOfComponents() * one.GetSizeOfPixelComponent()


# NIfTI


def is_nifti(start: bytes) -> bool:
    """Whether a file that begins with ``start`` is a NIfTI image."""
    return any(kind.may_contain_header(start) for kind in NIFTI_HEADERS)


def nifti_header(file: Path) -> nibabel.Nifti1Header | None:
    """The header of a NIfTI image as it is in the file, compressed or not; None for other content."""
    with file.open("rb") as stream:
        is_gzip = stream.read(len(GZIP)) == GZIP
    with gzip.open(file) if is_gzip else file.open("rb") as stream:
        start = stream.read(NIFTI_HEADER_BYTES)
    return _nifti_header(start) if is_nifti(start) else None


def _nifti_header(start: bytes) -> nibabel.Nifti1Header:
    kind = next(kind for kind in NIFTI_HEADERS if kind.may_contain_header(start))
    return kind.from_fileobj(io.BytesIO(start), check=False)


def expected_nifti_size(start: bytes) -> int:
    """Size in bytes of an uncompressed NIfTI file according to its header."""
    header = _nifti_header(start)
    return int(header["vox_offset"]) + math.prod(header.get_data_shape()) * header.get_data_dtype().itemsize


def _check_nifti(file: Path, stream: BinaryIO) -> None:
    check_size(file.stat().st_size, expected_nifti_size(stream.read(NIFTI_HEADER_BYTES)))


def _check_gzip(file: Path, stream: BinaryIO) -> None:
    with gzip.open(stream) as content:
        start = content.read(NIFTI_HEADER_BYTES)
        actual = len(start)
        while chunk := content.read(CHUNK_BYTES):
            actual += len(chunk)
    if is_nifti(start):
        check_size(actual, expected_nifti_size(start))


# NRRD and MetaImage: a text header, then the voxels


def _check_nrrd(file: Path, stream: BinaryIO) -> None:
    fields = _fields(_text_header(stream, lambda line: not line), ":")
    if named := fields.get("data file", fields.get("datafile")):
        raise InputError(_voxels_elsewhere(file, named))
    if fields["encoding"] == "raw":
        check_size(file.stat().st_size - stream.tell(), voxel_bytes(file))
    elif fields["encoding"] in ("gzip", "gz"):
        for _ in range(int(fields.get("line skip", 0))):
            stream.readline()
        check_size(decompressed_size(stream), voxel_bytes(file))


def _check_meta_image(file: Path, stream: BinaryIO) -> None:
    fields = _fields(_text_header(stream, lambda line: line.startswith("ElementDataFile")), "=")
    named = fields["elementdatafile"]
    data = file if named.upper() == "LOCAL" else file.with_name(_checked_data_file(file, named))
    if fields.get("compresseddata", "f")[0].lower() not in "ty1":
        is_text = fields.get("binarydata", "t")[0].lower() not in "ty1"
        header = stream.tell() if data == file else 0
        return None if is_text else check_size(data.stat().st_size - header, voxel_bytes(file))
    with data.open("rb") as voxels:
        voxels.seek(stream.tell() if data == file else 0)
        check_size(decompressed_size(voxels), voxel_bytes(file))


def _checked_data_file(file: Path, named: str) -> str:
    """``named`` if it is one file in the folder of ``file``, not a path, a list or a pattern."""
    is_one_file = is_file_name(named) and len(named.split()) == 1 and named.upper() != "LIST" and "%" not in named
    if not is_one_file or file.with_name(named).resolve().parent != file.resolve().parent:
        raise InputError(_voxels_elsewhere(file, named))
    return named


def _fields(lines: Iterable[str], separator: str) -> dict[str, str]:
    """Values by lower-case name."""
    pairs = (line.partition(separator) for line in lines if not line.startswith("#"))
    return {key.strip().lower(): value.strip() for key, _, value in pairs}


def _text_header(stream: BinaryIO, is_last: Callable[[str], bool]) -> Iterator[str]:
    """Lines up to and including the last one of a header; the stream is then at the first byte behind it."""
    while stream.tell() < HEADER_BYTES and (line := stream.readline(HEADER_BYTES)):
        yield (text := line.decode("latin-1").rstrip("\r\n"))
        if is_last(text):
            return
    raise EOFError("the header has no end")


def _voxels_elsewhere(file: Path, named: str) -> Problem:
    return Problem("voxels in another file", file, f"its voxels are in {named}", "save header and voxels in one file")


# GIPL and TIFF


def _is_gipl(start: bytes) -> bool:
    return len(start) >= GIPL_HEADER_BYTES and struct.unpack_from(">I", start, 252)[0] in GIPL_MAGIC


def _check_gipl(file: Path, stream: BinaryIO) -> None:
    check_size(file.stat().st_size, GIPL_HEADER_BYTES + voxel_bytes(file))


def _check_tiff(file: Path, stream: BinaryIO) -> None:
    """Check that all pages are there, and decode every strip or tile: compressed ones have a checksum or a length."""
    import tifffile  # nnU-Net's reader; takes a while to import

    pages, size = _tiff_pages(stream, file.stat().st_size), file.stat().st_size
    try:
        with tifffile.TiffFile(file) as tiff:
            if len(tiff.pages) != pages:
                raise ValueError(f"{len(tiff.pages)} of {pages} pages are readable")
            for page in (page.aspage() for page in tiff.pages):
                check_size(size, max(map(sum, zip(page.dataoffsets, page.databytecounts, strict=True))))
                if any(data is None for data, _, _ in page.segments()):
                    raise ValueError("a strip or tile is missing")
    except tifffile.TiffFileError as error:
        raise ValueError(str(error)) from error


def _tiff_pages(stream: BinaryIO, size: int) -> int:
    """Number of pages; follows the offsets from page to page, of which tifffile ignores those that are wrong."""
    start = stream.read(16)
    order = "<" if start[:2] == b"II" else ">"
    big = start[2:4].strip(b"\0") == b"+"
    count_format, offset_format, entry_bytes = (f"{order}Q", f"{order}Q", 20) if big else (f"{order}H", f"{order}I", 12)
    (offset,) = struct.unpack_from(offset_format, start, 8 if big else 4)
    seen: set[int] = set()
    while offset:
        if offset in seen or offset >= size:
            raise ValueError("the offset of a page is wrong")
        seen.add(offset)
        stream.seek(offset)
        (count,) = struct.unpack(count_format, stream.read(struct.calcsize(count_format)))
        stream.seek(count * entry_bytes, io.SEEK_CUR)
        (offset,) = struct.unpack(offset_format, stream.read(struct.calcsize(offset_format)))
    return len(seen)


FORMATS: tuple[tuple[Callable[[bytes], bool], Callable[[Path, BinaryIO], None]], ...] = (
    (lambda start: start.startswith(GZIP), _check_gzip),
    (is_nifti, _check_nifti),
    (lambda start: start.startswith(b"NRRD0"), _check_nrrd),
    (lambda start: b"ElementDataFile" in start, _check_meta_image),
    (lambda start: start[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), _check_tiff),
    (_is_gipl, _check_gipl),
)
"""Format by the first bytes of a file -> its check."""
