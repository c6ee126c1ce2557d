"""Read files of torch.save and safetensors from anyone: no code runs, no size surprises, errors that name the file."""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from app.checkpoint.tree import tensors
from app.errors import CheckpointError

HEAD_BYTES = 512


def read(path: Path, name: str | None = None) -> Any:
    """Read a file of torch.save, or of safetensors where `name` (`path`'s own unless given) ends in .safetensors.

    Raises:
        CheckpointError: see `load`.
    """
    return load_safetensors(path) if (name or path.name).lower().endswith(".safetensors") else load(path)


def load_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """Tensors by name.

    Raises:
        CheckpointError: missing, damaged or something else.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    with open(path, "rb") as file:
        head = file.read(HEAD_BYTES)
    if (kind := impostor(head, path.stat().st_size)) is not None:
        raise CheckpointError(f"{path} is not a checkpoint: {path.stat().st_size:,} bytes, {kind}")
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged or not a safetensors file: {error}") from None


def load(path: Path) -> Any:
    """Read what torch.save wrote: tensors, dicts, lists, numbers and strings only. Tensors are mapped, not read.

    Never falls back to the unsafe loader: that would leave the choice to the file.

    Raises:
        CheckpointError: missing, not a checkpoint (and what it looks like instead), cut off, holding objects that could
            run code, or bigger inside than outside.
    """
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            head = file.read(HEAD_BYTES)
    except FileNotFoundError:
        raise CheckpointError(
            f"{path} does not exist (in {Path.cwd()})" if not path.is_absolute() else f"{path} does not exist"
        ) from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    if (kind := impostor(head, size)) is not None:
        raise CheckpointError(f"{path} is not a checkpoint: {size:,} bytes, {kind}")
    is_zip = head.startswith(b"PK")
    if is_zip:
        _check_members(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about other pickle protocols: the outcome says enough
            value = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip or None)
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{path} {_refusal(str(error))}") from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged or not a checkpoint: {_first_line(error)}") from None
    _check_sizes(path, value, size)
    return value


def impostor(head: bytes, size: int) -> str | None:
    """Name what people download instead of a checkpoint, or None."""
    text = head.lstrip()[:64].lower()
    if size == 0:
        return "empty"
    if head.startswith(b"version https://git-lfs"):
        return "looks like a git-lfs pointer; fetch the real file with `git lfs pull`"
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "looks like a web page; the address was not that of the file itself"
    if text.startswith((b"{", b"[")):
        return "looks like JSON"
    return None


def _check_members(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is cut off or damaged: {_first_line(error)}") from None
    for member in members:
        if member.compress_type != zipfile.ZIP_STORED:
            raise CheckpointError(
                f"{path} is refused: {member.filename!r} in it is compressed, torch.save never does that"
            )
    if not any(member.filename.endswith("data.pkl") for member in members):
        raise CheckpointError(f"{path} is a zip archive, but not one written by torch.save")
    if any("/code/" in member.filename for member in members):
        raise CheckpointError(f"{path} is a TorchScript program, not a checkpoint; save its state_dict() instead")


def _check_sizes(path: Path, value: Any, size: int) -> None:
    for tensor in tensors(value):
        dense_bytes = tensor.numel() * tensor.element_size()
        if tensor.layout is torch.strided and dense_bytes > size:
            raise CheckpointError(
                f"{path} is refused: a tensor in it claims {dense_bytes:,} bytes, the whole file has {size:,}"
            )


def _refusal(message: str) -> str:
    """The reason of torch's unpickler, without its advice to load the file unsafely."""
    name = re.search(r"GLOBAL ([\w.]+)", message) or re.search(r"class (?:'|`)?([\w.]+)", message)
    if name is None:
        return "is damaged or not a checkpoint: it holds more than tensors and plain values"
    return (
        f"is refused: it asks for `{name[1]}`, and loading that could run code. "
        "Ask for a .safetensors file or a plain state_dict"
    )


def _first_line(error: Exception) -> str:
    text = str(error).strip().split("\n")[0].split(". ")[0]
    return type(error).__name__ if "weights_only" in text or not text else text[:200]
