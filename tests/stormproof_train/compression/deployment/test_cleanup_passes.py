"""An ONNX file without what no runtime reads."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
from onnx.parser import parse_model

from stormproof_train.compression.deployment.cleanup_passes import run_cleanup_passes

HEAD = '<ir_version: 10, opset_import: ["": 20]>'


def _outputs(model: onnx.ModelProto) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return session.run(None, {"input": np.array([1.0, -2.0], np.float32)})


def test_the_same_numbers_come_out_under_the_same_names_of_a_smaller_file():
    model = parse_model(f"""{HEAD} agraph (float[2] input) => (float[2] values, float[2] others)
        <float[2] nobody_reads_this = {{7.0, 8.0}}, float[2] a_long_name = {{1.5, 2.5}},
         float[2] the_same_again = {{1.5, 2.5}}, float[2] another = {{3.0, 4.0}}> {{
        somewhere_inside = Add(input, a_long_name)
        others = Mul(somewhere_inside, the_same_again)
        values = Sub(others, another)
    }}""")
    before, size = _outputs(model), model.ByteSize()
    model = run_cleanup_passes(model)
    onnx.checker.check_model(model, full_check=True)
    assert np.array_equal(before, _outputs(model))
    assert [output.name for output in model.graph.output] == ["values", "others"]
    assert len(model.graph.initializer) == 2
    assert model.ByteSize() < size / 1.4


def test_constants_of_the_same_bytes_but_another_type_or_shape_are_told_apart():
    model = parse_model(f"""{HEAD} agraph (float[2] input) => (float[2] values)
        <float[1] one = {{0.0}}, float zero = {{0.0}}, int64[1] axis = {{0}}> {{
        shifted = Add(input, one)
        again = Add(shifted, zero)
        total = ReduceSum(again, axis)
        values = Add(again, total)
    }}""")
    before = _outputs(model)
    model = run_cleanup_passes(model)
    assert len(model.graph.initializer) == 3
    assert np.array_equal(before, _outputs(model))


def test_an_argument_that_is_left_out_stays_left_out():
    model = parse_model(f"""{HEAD} agraph (float[2] input) => (float[2] values)
        <float most = {{1.0}}> {{
        values = Clip(input, , most)
    }}""")
    model = run_cleanup_passes(model)
    assert model.graph.node[0].input[1] == ""
    assert np.array_equal(_outputs(model), [[1.0, -2.0]])


def test_branches_still_know_what_is_outside():
    model = parse_model(f"""{HEAD} agraph (float[2] input) => (float[2] values)
        <float[2] outside = {{1.0, 2.0}}, bool condition = {{1}}> {{
        doubled = Add(input, input)
        values = If(condition) <
            then_branch = one () => (float[2] out) {{ sum = Add(doubled, outside) out = Neg(sum) }},
            else_branch = two () => (float[2] out) {{ out = Sub(doubled, outside) }}
        >
    }}""")
    before = _outputs(model)
    model = run_cleanup_passes(model)
    onnx.checker.check_model(model, full_check=True)
    assert "doubled" not in str(model)
    assert np.array_equal(before, _outputs(model))


def test_a_constant_that_is_given_stays_and_no_short_name_is_one_of_the_outputs():
    model = parse_model(f"""{HEAD} agraph (float[2] input) => (float[2] o, float[2] given)
        <float[2] given = {{1.5, 2.5}}, float[2] same = {{1.5, 2.5}}> {{
        inside = Add(input, same)
        o = Mul(inside, same)
    }}""")
    model.graph.output[0].name = model.graph.node[1].output[0] = "0"
    before = _outputs(model)
    model = run_cleanup_passes(model)
    onnx.checker.check_model(model, full_check=True)
    assert np.array_equal(before, _outputs(model))
    assert [output.name for output in model.graph.output] == ["0", "given"]
