import pytest
import torch

from nlhf_zoo.health.reference_fingerprint import checksum

SIZES = [(0,), (1,), (7,), (1024,), (8 * 1024,), (3, 5000), (2, 3, 4096), (8 * 1024 + 1,)]
TYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.int8]


def by_hand(tensor: torch.Tensor) -> int:
    """The definition, entry by entry, in Python's whole numbers."""
    data = tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
    data += bytes(-len(data) % 8)
    total, spread = 0, 0x1E3779B97F4A7C15
    for start in range(0, len(data), 8):
        row, column = divmod(start // 8, 1024)
        word = int.from_bytes(data[start : start + 8], "little")
        word ^= word >> 29
        total += (2 * spread * row + 1 + 6 * spread * column) * word
    return total % 2**64


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("size", SIZES)
def test_it_is_what_it_says(size, dtype):
    tensor = (100 * torch.randn(size)).to(dtype)
    assert checksum(tensor) == by_hand(tensor)
    assert checksum(tensor) == checksum(tensor.clone())


def test_it_does_not_depend_on_threads_or_strides():
    tensor = torch.randn(300, 1000)
    before = torch.get_num_threads()
    found = set()
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.add(checksum(tensor))
    torch.set_num_threads(before)
    assert found == {checksum(tensor.T.contiguous().T)}
    shifted = torch.cat([torch.zeros(1), tensor.flatten()])[1:]  # lies at no multiple of 8 bytes
    assert checksum(shifted) in found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_bit_anywhere_changes_it(dtype):
    tensor = torch.randn(5000).to(dtype)
    bits = tensor.view(torch.int32 if dtype == torch.float32 else torch.int16)
    found = {checksum(tensor)}
    places = [0, 1, 1023, 1024, 2500, 4999]
    width = 8 * tensor.element_size()
    for place in places:
        for bit in range(width):
            mask = torch.tensor(1 << bit).to(bits.dtype)
            bits[place] ^= mask
            found.add(checksum(tensor))
            bits[place] ^= mask
    assert len(found) == 1 + len(places) * width


@pytest.mark.parametrize("dtype", TYPES)
def test_exchanges_and_signs_change_it(dtype):
    """Which a plain sum would not see."""
    tensor = (100 * torch.randn(40, 2048)).to(dtype)
    others = (tensor.flip(0), tensor.flip(1), tensor.roll(1, 0), tensor.roll(2, 1), -tensor)
    assert checksum(tensor) not in map(checksum, others)
