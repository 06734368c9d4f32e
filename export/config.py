"""config.pbtxt of an ensemble and its parts, built as Triton's own ModelConfig message from the contract."""

from tritonclient.grpc import model_config_pb2 as triton

from referent.core.bundle import Bundle
from referent.core.contract import DIGEST_PARAMETER, Step, Tensor, dims_of, dtype_of, part_name
from referent.kinds import kind_of
from referent.triton.repository import only

ONNXRUNTIME = "onnxruntime"
CUDA = {  # instead of what costs up to twice the memory, and a search at the start of every shape
    "arena_extend_strategy": "1",  # as much as is asked for, not the next power of two
    "cudnn_conv_algo_search": "1",  # by heuristics
    "session.use_device_allocator_for_initializers": "1",  # weights are outside the arena
}
HEADER = "# Written by python -m export from the contract of its kind; see export/config.py.\n"


def part_config(bundle: Bundle, step: Step, sizes: dict[str, int], max_batch_size: int) -> triton.ModelConfig:
    """One step: dynamic batching, one instance, warm-up with zeros for each bucket, and for the largest batch of the
    largest bucket, so that a GPU with too little memory fails at once.

    Requests don't wait for others to form a batch: a batch consists of those that arrive while the instance is busy, so
    a single request loses no time (`benchmarks.batching` has figures for other delays and counts). The device of the
    instance and the version to serve are set by whoever starts Triton.
    """
    kind, name = kind_of(bundle), part_name(bundle.name, step)
    config = triton.ModelConfig(
        name=name,
        backend=step.backend,
        max_batch_size=max_batch_size if step.batches else 1,
        input=[triton.ModelInput(**_tensor(tensor, bundle, sizes)) for tensor in step.inputs],
        output=[triton.ModelOutput(**_tensor(tensor, bundle, sizes)) for tensor in kind.step_outputs(step, bundle)],
        instance_group=[triton.ModelInstanceGroup(count=1, kind=triton.ModelInstanceGroup.KIND_AUTO)],
        dynamic_batching=triton.ModelDynamicBatching() if step.batches else None,
    )
    # Triton's Python backends copy inputs to the host unless told not to; C++ backends ignore the key
    config.parameters["FORCE_CPU_ONLY_INPUT_TENSORS"].string_value = "no"
    for key, value in CUDA.items():
        config.parameters[key].string_value = value
    shapes = kind.warm_ups(bundle) if step.batches else {}
    if not any(letter in shape for shape in shapes.values() for tensor in step.inputs for letter in tensor.shape):
        shapes = dict(zip(["one"], shapes.values(), strict=False))
    for shape_name, shape in shapes.items():
        _warm_up(config, step, bundle, shape_name, sizes | shape, 1)
    if shapes and max_batch_size > 1:
        largest, shape = list(shapes.items())[-1]  # buckets ascend
        _warm_up(config, step, bundle, f"{largest}, {max_batch_size} at once", sizes | shape, max_batch_size)
    return config


def _warm_up(
    config: triton.ModelConfig, step: Step, bundle: Bundle, name: str, sizes: dict[str, int], rows: int
) -> None:
    warmup = config.model_warmup.add(name=name, batch_size=rows)
    for tensor in step.inputs:
        entry = warmup.inputs[tensor.name]
        entry.data_type = triton.DataType.Value("TYPE_" + dtype_of(tensor, bundle.dtype))
        entry.dims.extend(dims_of(tensor, sizes))
        entry.zero_data = True


def ensemble_config(bundle: Bundle, digest: str, sizes: dict[str, int], max_batch_size: int) -> triton.ModelConfig:
    """The ensemble: the versions of its steps are pinned, and its parameters contain the bundle's digest."""
    kind = kind_of(bundle)
    config = triton.ModelConfig(
        name=bundle.name,
        platform="ensemble",
        max_batch_size=max_batch_size if all(step.batches for step in kind.steps) else 1,
        version_policy=only(int(bundle.version)),
        input=[triton.ModelInput(**_tensor(tensor, bundle, sizes)) for tensor in kind.inputs],
        output=[triton.ModelOutput(**_tensor(tensor, bundle, sizes)) for tensor in kind.outputs(bundle)],
    )
    for step in kind.steps:
        name = part_name(bundle.name, step)
        entry = config.ensemble_scheduling.step.add(model_name=name, model_version=bundle.parts[name])
        entry.input_map.update({tensor.name: tensor.name for tensor in step.inputs})
        entry.output_map.update({tensor.name: tensor.name for tensor in kind.step_outputs(step, bundle)})
    config.parameters[DIGEST_PARAMETER].string_value = digest
    return config


def _tensor(tensor: Tensor, bundle: Bundle, sizes: dict[str, int]) -> dict[str, object]:
    data_type = triton.DataType.Value("TYPE_" + dtype_of(tensor, bundle.dtype))
    return {"name": tensor.name, "data_type": data_type, "dims": dims_of(tensor, sizes)}
