"""ONNX files as a source of tensors and as trainable networks. Nothing in a file is executed by parsing it.

(The module is not called ``onnx``: a script in this folder would then import it instead of the library.)
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from data_shards.command import InputError


def parse(path: Path):
    """The ``onnx.ModelProto`` in a file. Tensors kept in other files are refused: they could name any path."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load_model_from_string(path.read_bytes())
    except DecodeError as error:
        raise InputError(f"{path} is not an ONNX file: {error}") from None
    for tensor in model.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            raise InputError(f"{path} keeps tensor {tensor.name} in another file; store the model as one file")
    return model


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Initialisers by name. An exporter leaves the matrix of a linear layer transposed and unnamed
    (``onnx::MatMul_12``); if its product is added to an initialiser ``X.bias``, it is returned as ``X.weight``."""
    from onnx import numpy_helper

    graph = parse(path).graph
    tensors = {item.name: torch.from_numpy(numpy_helper.to_array(item).copy()) for item in graph.initializer}
    added_to = {name: node for node in graph.node if node.op_type == "Add" for name in node.input}
    for node in graph.node:
        matrix, following = node.input[-1] if node.input else "", added_to.get(node.output[0])
        if node.op_type != "MatMul" or matrix not in tensors or following is None:
            continue
        for name in following.input:
            if name in tensors and name.endswith(".bias"):
                tensors[name.removesuffix("bias") + "weight"] = tensors.pop(matrix).T.contiguous()
    return tensors


def to_module(path: Path, layer: str = "pooled") -> nn.Module:
    """A trainable ``torch.fx.GraphModule`` of the graph, from its single input to the tensor ``layer`` (``pooled``:
    its first output). The batch axis is made free. Operators that onnx2torch does not know raise InputError."""
    import onnx2torch

    model = parse(path)
    output = model.graph.output[0].name if layer == "pooled" else layer
    _cut(model, output, path)
    try:
        module = onnx2torch.convert(model)
    except (NotImplementedError, RuntimeError, KeyError, ValueError) as error:
        raise InputError(f"{path} cannot be turned into a torch module: {error}") from None
    return _with_parameters(module)


def parameters_in_order(module: nn.Module) -> list[list[str]]:
    """Parameter names of every layer that has a matrix or kernel, with those of the normalisations and activations
    behind it, in the graph's topological order."""
    layers: list[list[str]] = []
    for node in module.graph.nodes:
        if node.op == "call_module":
            target = module.get_submodule(node.target)
            own = {f"{node.target}.{name}": parameter for name, parameter in target.named_parameters()}
        else:
            value = _attribute(module, node.target) if node.op == "get_attr" else None
            own = {node.target: value} if isinstance(value, nn.Parameter) else {}
        if not own:
            continue
        starts = not layers or any(parameter.ndim > 1 for parameter in own.values())
        layers.append(list(own)) if starts else layers[-1].extend(own)
    return layers


def initialise(module: nn.Module) -> None:
    """Draw every weight anew, by torch's default of each layer. InputError where a layer has none."""
    for name, child in module.named_modules():
        if hasattr(child, "reset_parameters"):
            child.reset_parameters()
        elif isinstance(child, nn.PReLU):
            nn.init.constant_(child.weight, 0.25)
        elif next(child.parameters(recurse=False), None) is not None:
            raise InputError(f"this ONNX graph has no random control: no initialisation is known for its {name}")


def _with_parameters(module: nn.Module) -> nn.Module:
    """onnx2torch keeps operands it has no layer for as buffers: make slopes PReLU layers and the rest parameters."""
    for node in list(module.graph.nodes):
        if node.op != "call_module" or type(module.get_submodule(node.target)).__name__ != "OnnxPReLU":
            continue
        inputs, slope = node.args
        if slope.op == "get_attr":
            values = _attribute(module, slope.target).flatten()
            layer = nn.PReLU(values.numel())
            layer.weight.data.copy_(values)
            module.set_submodule(node.target, layer)
            node.args = (inputs,)
    module.graph.eliminate_dead_code()
    read = {node.target for node in module.graph.nodes if node.op == "get_attr"}
    for name, value in list(module.named_buffers()):
        owner, _, attribute = name.rpartition(".")
        if owner != "initializers":
            continue
        holder = module.get_submodule(owner)
        if name not in read:
            delattr(holder, attribute)
        elif value.is_floating_point() and value.numel() > 1:
            delattr(holder, attribute)
            holder.register_parameter(attribute, nn.Parameter(value))
    module.recompile()
    return module


def _attribute(module: nn.Module, name: str) -> Tensor:
    owner, _, attribute = name.rpartition(".")
    return getattr(module.get_submodule(owner), attribute)


def _cut(model, output: str, path: Path) -> None:
    """Keep the nodes that ``output`` depends on, and make it the only output."""
    import onnx

    produced = {name: node for node in model.graph.node for name in node.output}
    if output not in produced:
        raise InputError(f"{path} has no tensor {output!r} to take features from")
    needed, pending = set(), [output]
    while pending:
        node = produced.get(pending.pop())
        if node is not None and id(node) not in needed:
            needed.add(id(node))
            pending.extend(node.input)
    kept = [node for node in model.graph.node if id(node) in needed]
    used = {name for node in kept for name in node.input}
    initialisers = [item for item in model.graph.initializer if item.name in used]
    inputs = [item for item in model.graph.input if item.name in used - {i.name for i in initialisers}]
    for field, items in (("node", kept), ("initializer", initialisers), ("input", inputs)):
        copies = [type(item).FromString(item.SerializeToString()) for item in items]
        model.graph.ClearField(field)
        getattr(model.graph, field).extend(copies)
    model.graph.ClearField("output")
    model.graph.output.append(onnx.helper.make_empty_tensor_value_info(output))
