import pytest
import torch

from orch_core.contracts.errors import MalformedMessage
from orch_core.dataplane.group import Blob
from orch_core.dataplane.shares import Incoming, Packed, Share, checksum


def blob(**header):
    g = torch.Generator().manual_seed(3)
    tensors = [torch.randn(7, 3, generator=g), torch.zeros(0), torch.arange(5), torch.tensor(2.5, dtype=torch.bfloat16)]
    return Blob({"version": 1, **header}, tensors)


def send(packed, incoming, share):
    parts = packed.share(share)
    for view, part in zip(incoming.room(share, packed.text), parts, strict=True):
        view[:] = part
    incoming.filled(share)


@pytest.mark.parametrize("of", [1, 2, 3, 7, 200])
def test_shares_make_the_whole_in_any_order(of):
    packed = Packed.of(blob())
    incoming = Incoming(packed.text, of, "a state")
    for index in reversed(range(of)):
        assert not incoming.complete
        send(packed, incoming, Share(index, of))
    assert incoming.complete
    assert incoming.blob.header == {"version": 1}
    for mine, its in zip(blob().tensors, incoming.blob.tensors, strict=True):
        assert mine.dtype == its.dtype
        assert torch.equal(mine, its)


def test_a_copied_share_stays_as_it_was():
    original = blob()
    packed, share = Packed.of(original), Share(1, 3)
    for room in (memoryview(bytearray(200)), memoryview(b"")):
        copied = packed.copied(share, room, packed.size)
        before = b"".join(copied)
        original.tensors[0].fill_(9.0)
        original.tensors[2].fill_(9)
        assert b"".join(copied) == before
        original.tensors[0].copy_(blob().tensors[0])
        original.tensors[2].copy_(blob().tensors[2])
        assert before == b"".join(packed.share(share))


def test_what_does_not_change_is_not_copied():
    original = blob()
    packed, share = Packed.of(original), Share(0, 1)
    copied = packed.copied(share, memoryview(bytearray(200)), original.tensors[0].nbytes)
    original.tensors[0].fill_(9.0)
    original.tensors[2].fill_(9)
    assert b"".join(copied) == b"".join(
        [*Packed.of(blob()).copied(share, memoryview(b""), packed.size)[:1], *packed.views[2:]]
    )


def test_the_order_of_keys_is_no_difference():
    assert Packed.of(blob(a=1, b=2)).text == Packed.of(blob(b=2, a=1)).text


def test_shares_of_different_blobs_do_not_mix():
    packed, other = Packed.of(blob()), Packed.of(blob(step=4))
    incoming = Incoming(packed.text, 2, "a state")
    send(packed, incoming, Share(0, 2))
    with pytest.raises(MalformedMessage, match="differently"):
        incoming.room(Share(1, 2), other.text)


@pytest.mark.parametrize("share", [Share(0, 2), Share(1, 3)])
def test_a_share_that_is_here_or_of_another_cut_is_refused(share):
    packed = Packed.of(blob())
    incoming = Incoming(packed.text, 2, "a state")
    send(packed, incoming, Share(0, 2))
    with pytest.raises(MalformedMessage, match="is not one of"):
        incoming.room(share, packed.text)


@pytest.mark.parametrize(("index", "of"), [(0, 0), (1, 1), (-1, 2), (0, -1)])
def test_there_is_no_share_of_nothing(index, of):
    with pytest.raises(MalformedMessage, match="there is no share"):
        Share(index, of)


def test_a_changed_byte_changes_the_checksum():
    packed = Packed.of(blob())
    parts = packed.share(Share(0, 2))
    before = checksum(parts)
    changed = [bytearray(part) for part in parts]
    changed[0][0] ^= 1
    assert checksum([memoryview(part) for part in changed]) != before
