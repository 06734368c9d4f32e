"""Weights of exported graphs as int8, for CPUs: matrix products multiply integers, scaled by what each tensor holds."""

from pathlib import Path

from onnxruntime.quantization import QuantType, quantize_dynamic

PRODUCTS = ["MatMul", "Gemm"]  # convolutions and attention stay floats


def quantize(file: Path) -> None:
    """Replaces a graph by its dynamic int8 form.

    A tensor is scaled by its own range, batch included: an answer depends a little on what is batched with it.
    Weights keep seven bits: a processor without VNNI adds pairs of products in 16 bits, where those of eight overflow.
    """
    quantized = file.with_suffix(".int8")
    quantize_dynamic(
        file, quantized, weight_type=QuantType.QInt8, reduce_range=True, per_channel=True, op_types_to_quantize=PRODUCTS
    )
    quantized.replace(file)
