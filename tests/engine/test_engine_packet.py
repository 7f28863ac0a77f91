"""Messages of several tensors in one buffer."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from hpcdl.engine.transport.packet import Field, Packet

CPU = torch.device("cpu")
DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.uint8, torch.bool])
FIELDS = st.builds(Field, st.lists(st.integers(0, 4), max_size=3).map(tuple), DTYPES)


def drawn(field, rows):
    return torch.randint(0, 2, (rows, *field.tail)).to(field.dtype)


@given(
    st.lists(FIELDS, max_size=4), st.lists(st.integers(-(2**62), 2**62), min_size=1, max_size=5), st.data()
)
def test_what_is_packed_comes_out(signature, numbers, data):
    most = data.draw(st.integers(1, 5))
    rows = data.draw(st.integers(1, most))
    packet = Packet(tuple(signature), len(numbers), most, CPU)
    tensors = tuple(drawn(field, rows) for field in signature)
    buffer = packet.pack(tuple(numbers), tensors)
    assert packet.numbers(buffer) == numbers
    assert buffer.shape == packet.empty().shape
    for found, wanted in zip(packet.tensors(buffer, rows), tensors, strict=True):
        assert found.dtype == wanted.dtype
        assert torch.equal(found, wanted)


def test_a_received_tensor_is_the_buffer_itself():
    packet = Packet((Field((2,), torch.float32),), 1, 3, CPU)
    buffer = packet.empty()
    packet.tensors(buffer, 3)[0].fill_(7.0)
    assert torch.equal(packet.tensors(buffer, 2)[0], torch.full((2, 2), 7.0))
