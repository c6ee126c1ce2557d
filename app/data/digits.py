"""scikit-learn's handwritten digits, from the file in its package: importing scikit-learn itself takes seconds."""

import gzip
import importlib.util
from pathlib import Path

import numpy as np
import torch

from app.data.source import ImageTensor, Splits
from app.data.split import stratified_split
from app.errors import DataError


def digits(val_fraction: float = 0.2) -> Splits:
    """1,797 grey images of 8x8 pixels (E. Alpaydin and C. Kaynak, UCI repository, 1998), split by class.

    Raises:
        DataError: scikit-learn or its file is not there.
    """
    spec = importlib.util.find_spec("sklearn")
    if spec is None or spec.origin is None:
        raise DataError("data=digits reads a file of scikit-learn, which is not installed: pip install scikit-learn")
    path = Path(spec.origin).parent / "datasets" / "data" / "digits.csv.gz"
    try:
        text = gzip.decompress(path.read_bytes())
    except (OSError, EOFError) as error:
        raise DataError(f"data=digits: cannot read {path}: {error}") from error
    numbers = np.fromiter(map(int, text.replace(b"\n", b",").rstrip(b",").split(b",")), dtype=np.int64)
    table = torch.from_numpy(numbers).view(-1, 65)  # 64 pixels and the digit
    images = ((table[:, :64] * 255 + 8) // 16).to(torch.uint8).view(-1, 1, 8, 8)  # 0..16 to 0..255
    targets = table[:, 64].clone()
    train, val = stratified_split(targets, val_fraction)
    pixels = images[train].float() / 255
    return Splits(
        train=ImageTensor(images[train], targets[train]),
        val=ImageTensor(images[val], targets[val]),
        classes=[str(digit) for digit in range(10)],
        mean=[float(pixels.mean())],
        std=[float(pixels.std())],
    )
