import pytest
import torch
from torch import Tensor, nn

from orch_core.contracts.errors import ConfigurationError
from orch_core.dataplane.layout import Layout


def gathered(layout: Layout, grads: list[Tensor | None]) -> list[Tensor]:
    flats = []
    for bucket in layout.buckets:
        flats.append(layout.flat(bucket))
        layout.gather(bucket, grads, flats[-1])
    return flats


def mixed() -> list[tuple[str, Tensor]]:
    """Every dtype that has gradients, an empty parameter, a scalar, one in another memory format."""
    return [
        ("float", torch.randn(3, 4)),
        ("half", torch.randn(5).half()),
        ("bfloat", torch.randn(2, 2).bfloat16()),
        ("double", torch.randn(7).double()),
        ("complex", torch.randn(3, dtype=torch.complex64)),
        ("complex128", torch.randn(2, dtype=torch.complex128)),
        ("empty", torch.zeros(0, 5)),
        ("scalar", torch.tensor(2.5)),
        ("channels_last", torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)),
        ("counter", torch.arange(3)),
    ]


def test_it_is_a_function_of_names_shapes_and_dtypes() -> None:
    assert Layout.of(mixed(), 64) == Layout.of(mixed(), 64)


def test_buckets_hold_at_most_their_size_and_one_dtype() -> None:
    layout = Layout.of(mixed(), 64)
    for bucket in layout.buckets:
        assert bucket.size * bucket.dtype.itemsize <= 64 or len(bucket.slots) == 1
        assert bucket.dtype == (torch.float64 if bucket.slots[0].dtype.to_real() == torch.float64 else torch.float32)
    placed = sorted(slot.position for bucket in layout.buckets for slot in bucket.slots)
    assert placed == list(range(9)), "all but the integers"


def test_the_last_parameter_comes_first() -> None:
    layout = Layout.of([("a", torch.zeros(4)), ("b", torch.zeros(4))], 1 << 20)
    assert [slot.name for slot in layout.buckets[0].slots] == ["b", "a"]


@pytest.mark.parametrize("bucket_bytes", [1, 64, 1 << 20])
def test_what_is_gathered_and_written_is_what_was_there(bucket_bytes: int) -> None:
    parameters = mixed()
    layout = Layout.of(parameters, bucket_bytes)
    tensors = [nn.Parameter(tensor, requires_grad=name != "counter") for name, tensor in parameters]
    grads: list[Tensor | None] = [None if name == "counter" else torch.ones_like(t) * 0.5 for name, t in parameters]
    layout.write(gathered(layout, grads), layout.presence(grads), tensors, [None] * len(tensors))
    for (name, _), parameter, grad in zip(parameters, tensors, grads, strict=True):
        if grad is None:
            assert parameter.grad is None
        else:
            assert parameter.grad is not None, name
            assert parameter.grad.dtype == parameter.dtype
            assert parameter.grad.stride() == parameter.stride()
            assert torch.equal(parameter.grad, grad)


def test_none_counts_as_zeros_and_is_remembered() -> None:
    layout = Layout.of([("a", torch.zeros(2)), ("b", torch.zeros(3))], 1 << 20)
    [flat] = gathered(layout, [None, torch.ones(3)])
    assert flat.tolist() == [1, 1, 1, 0, 0]
    assert layout.presence([None, torch.ones(3)]) == 0b10
    [flat] = gathered(layout, [None, None])
    assert flat.tolist() == [0] * 5


def test_a_mean_is_added_to_what_was_left_and_absent_gradients_stay_absent() -> None:
    parameters = [nn.Parameter(torch.zeros(2)) for _ in range(4)]
    layout = Layout.of([(str(i), p) for i, p in enumerate(parameters)], 1 << 20)
    left = [torch.tensor([1.0, 2.0]), None, torch.tensor([5.0, 5.0]), None]
    layout.write([torch.full((8,), 10.0)], 0b0011, parameters, left)
    assert parameters[0].grad is left[0]
    assert [p.grad.tolist() if p.grad is not None else None for p in parameters] == [[11, 12], [10, 10], [5, 5], None]


def test_written_gradients_do_not_share_memory_with_the_results() -> None:
    parameter = nn.Parameter(torch.zeros(4))
    mean = torch.ones(4)
    Layout.of([("a", parameter)], 1 << 20).write([mean], 1, [parameter], [None])
    assert parameter.grad is not None
    parameter.grad.mul_(0)
    assert mean.tolist() == [1] * 4


def test_a_low_precision_mean_is_rounded_once() -> None:
    parameter = nn.Parameter(torch.zeros(1).bfloat16())
    mean = torch.tensor([1.00390625])  # halfway between two bfloat16
    Layout.of([("a", parameter)], 1 << 20).write([mean], 1, [parameter], [None])
    assert parameter.grad is not None
    assert torch.equal(parameter.grad, mean.bfloat16())


def test_a_sparse_gradient_is_an_error_that_names_the_parameter() -> None:
    embedding = nn.Embedding(4, 2, sparse=True)
    embedding(torch.tensor([1])).sum().backward()
    layout = Layout.of(embedding.named_parameters(), 1 << 20)
    with pytest.raises(ConfigurationError, match="gradient of weight is sparse.*sparse=False"):
        gathered(layout, [embedding.weight.grad])


def test_a_parameter_that_changed_its_shape_is_an_error() -> None:
    layout = Layout.of([("a", torch.zeros(2))], 1 << 20)
    with pytest.raises(ConfigurationError, match="must keep their shapes"):
        gathered(layout, [torch.zeros(3)])


def test_a_bucket_shows_each_parameter_in_its_shape() -> None:
    layout = Layout.of([("a", torch.zeros(2, 3)), ("z", torch.zeros(2, dtype=torch.complex64))], 1 << 20)
    [flat] = gathered(layout, [torch.arange(6.0).view(2, 3), torch.tensor([1 + 2j, 3 + 4j])])
    bucket = layout.bucket(layout.buckets[0], flat)
    assert [(p.name, p.shape) for p in bucket.parameters] == [("z", (2,)), ("a", (2, 3))]
    assert bucket.parameters[0].grad.tolist() == [[1, 2], [3, 4]]
    assert torch.equal(bucket.parameters[1].grad, torch.arange(6.0).view(2, 3))
    bucket.parameters[1].grad.zero_()
    assert flat.tolist() == [1, 2, 3, 4] + [0] * 6


def test_flat_tensors_are_aligned() -> None:
    for count in (1, 3, 1 << 18, (1 << 18) + 1):
        layout = Layout.of([("a", torch.zeros(count))], 1 << 20)
        assert layout.flat(layout.buckets[0]).data_ptr() % 64 == 0
