"""The last step of a decision over PaliGemma's vocabulary: all logits under a mask of bits, as it is served, or the
logits of the allowed tokens alone, gathered by their ids.

    python -m benchmarks.allowed_ids [--rows 1 8] [--allowed 12 1024]

Random weights of the size of PaliGemma-2 3B in ONNX Runtime, one thread, milliseconds of processor time. The gathered
step cannot give `mass`, the probability of all allowed tokens together: that takes all logits.
"""

import gc
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from benchmarks.lib.measuring import Report, Row, arguments_of

VOCABULARY, HIDDEN = 257_216, 2304
FORBIDDEN = -1e30
OPSET = 20


def table(folder: Path) -> onnx.TensorProto:
    """(V, D) fp32 in a file beside the graphs, which both of them map."""
    file = folder / "table.bin"
    rng = np.random.default_rng(0)
    with file.open("wb") as stream:
        for first in range(0, VOCABULARY, 8192):
            rng.standard_normal((min(8192, VOCABULARY - first), HIDDEN), np.float32).tofile(stream)
    tensor = onnx.TensorProto(name="table", data_type=TensorProto.FLOAT, dims=[VOCABULARY, HIDDEN])
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=file.name)
    return tensor


def constant(name: str, values: object, dtype: type[np.generic]) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array(values, dtype), name)


def masked(weights: onnx.TensorProto) -> onnx.ModelProto:
    """hidden (B, D), allowed (B, V / 8) uint8 -> token, logprob, mass, all (B,)."""
    node = helper.make_node
    nodes = [
        node("Gemm", ["hidden", "table"], ["logits"], transB=1),
        node("Unsqueeze", ["allowed", "last"], ["bytes"]),
        node("BitwiseAnd", ["bytes", "bits"], ["anded"]),
        node("Cast", ["anded"], ["flags"], to=TensorProto.BOOL),
        node("Reshape", ["flags", "shape"], ["mask"]),
        node("Where", ["mask", "logits", "forbidden"], ["held"]),
        node("ArgMax", ["held"], ["token"], axis=1, keepdims=0),
        node("ReduceMax", ["held", "axis"], ["best"], keepdims=0),
        node("ReduceLogSumExp", ["held", "axis"], ["total"], keepdims=0),
        node("ReduceLogSumExp", ["logits", "axis"], ["whole"], keepdims=0),
        node("Sub", ["best", "total"], ["logprob"]),
        node("Sub", ["total", "whole"], ["mass"]),
    ]
    constants = [
        constant("last", [-1], np.int64), constant("bits", [1, 2, 4, 8, 16, 32, 64, 128], np.uint8),
        constant("shape", [0, -1], np.int64), constant("forbidden", FORBIDDEN, np.float32),
        constant("axis", [1], np.int64),
    ]  # fmt: skip
    inputs = [value("hidden", TensorProto.FLOAT, HIDDEN), value("allowed", TensorProto.UINT8, VOCABULARY // 8)]
    outputs = [value("token", TensorProto.INT64), value("logprob", TensorProto.FLOAT), value("mass", TensorProto.FLOAT)]
    return model(nodes, inputs, outputs, [weights, *constants])


def gathered(weights: onnx.TensorProto) -> onnx.ModelProto:
    """hidden (B, D), ids (B, A) int64 -> token, logprob, both (B,)."""
    node = helper.make_node
    nodes = [
        node("Gather", ["table", "ids"], ["rows"], axis=0),  # (B, A, D)
        node("Unsqueeze", ["hidden", "last"], ["column"]),
        node("MatMul", ["rows", "column"], ["products"]),
        node("Squeeze", ["products", "last"], ["logits"]),
        node("ArgMax", ["logits"], ["place"], axis=1, keepdims=1),
        node("GatherElements", ["ids", "place"], ["tokens"], axis=1),
        node("Squeeze", ["tokens", "axis"], ["token"]),
        node("ReduceMax", ["logits", "axis"], ["best"], keepdims=0),
        node("ReduceLogSumExp", ["logits", "axis"], ["total"], keepdims=0),
        node("Sub", ["best", "total"], ["logprob"]),
    ]
    constants = [constant("last", [-1], np.int64), constant("axis", [1], np.int64)]
    inputs = [value("hidden", TensorProto.FLOAT, HIDDEN), value("ids", TensorProto.INT64, "A")]
    outputs = [value("token", TensorProto.INT64), value("logprob", TensorProto.FLOAT)]
    return model(nodes, inputs, outputs, [weights, *constants])


def value(name: str, dtype: int, *shape: int | str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, ["B", *shape])


def model(
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    constants: list[onnx.TensorProto],
) -> onnx.ModelProto:
    graph = helper.make_graph(nodes, "decision", inputs, outputs, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)


def session(graph: onnx.ModelProto, folder: Path) -> onnxruntime.InferenceSession:
    file = folder / "graph.onnx"
    file.write_bytes(graph.SerializeToString())
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.disable_prepacking", "1")  # the table stays mapped, and is not copied
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def least_ms(run: onnxruntime.InferenceSession, inputs: dict[str, np.ndarray], calls: int) -> float:
    """Processor time in milliseconds of the fastest of several calls."""
    run.run(None, inputs)
    times = []
    for _ in range(calls):
        start = time.process_time()
        run.run(None, inputs)
        times.append(1000 * (time.process_time() - start))
    return min(times)


def main() -> None:
    parser = arguments_of(__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8], help="decisions of a pass")
    parser.add_argument("--allowed", type=int, nargs="+", default=[12, 1024], help="tokens: digits; PaliGemma's <loc>")
    parser.add_argument("--calls", type=int, default=10)
    arguments = parser.parse_args()
    report, rng = Report("allowed_ids", arguments.out), np.random.default_rng(1)
    hidden = rng.standard_normal((max(arguments.rows), HIDDEN), np.float32)
    chosen = {
        count: np.stack([rng.choice(VOCABULARY, count, replace=False) for _ in hidden]) for count in arguments.allowed
    }
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        weights = table(folder)
        answers = {}
        for name, graph in (("masked", masked(weights)), ("gathered", gathered(weights))):
            run = session(graph, folder)
            for count, ids in chosen.items():
                mask = np.zeros((len(hidden), VOCABULARY), bool)
                np.put_along_axis(mask, ids, True, axis=1)
                bits = np.packbits(mask, axis=1, bitorder="little")
                for batch in arguments.rows:
                    given = {"allowed": bits[:batch]} if name == "masked" else {"ids": ids[:batch].astype(np.int64)}
                    inputs = {"hidden": hidden[:batch], **given}
                    answers[name, count, batch] = run.run(["token", "logprob"], inputs)
                    ms = least_ms(run, inputs, arguments.calls)
                    rows.append({"step": name, "allowed": count, "rows": batch, "ms": ms, "ms a row": ms / batch})
            del run
            gc.collect()
    for count in chosen:
        for batch in arguments.rows:
            for one, other in zip(answers["masked", count, batch], answers["gathered", count, batch], strict=True):
                np.testing.assert_allclose(one, other, rtol=1e-4)
    report.add("one decision of each row, milliseconds of processor time, least of all calls", rows)


if __name__ == "__main__":
    main()
