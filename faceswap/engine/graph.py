"""Prompts as graphs: ComfyUI's checks before one is queued, and the order it runs in. Pure.

The checks and every word of their errors follow `execution.py` of ComfyUI 0.3.64.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

Graph = dict[str, dict[str, Any]]
"""Node id → `{"class_type", "inputs"}`; an input is a value or a link `[node id, output slot]`."""

Descriptions = Mapping[str, Mapping[str, Any]]
"""Node class → what `/object_info` tells of it."""

FileChecks = Mapping[tuple[str, str], Callable[[Any], str | None]]
"""`(class, input)` → for a value of that input, what is wrong with the file it names, or None."""

_CONVERSIONS: dict[str, Callable[[Any], Any]] = {"INT": int, "FLOAT": float, "STRING": str, "BOOLEAN": bool}
_LONGEST_LIST_SHOWN = 20


@dataclass
class Validation:
    """The result of a validation: the outputs that can run, and the errors of the others."""

    outputs: list[str] = field(default_factory=list)
    error: dict[str, Any] | None = None
    node_errors: dict[str, Any] = field(default_factory=dict)


def is_link(value: Any) -> bool:
    """Return true for an input that comes from another node: `[node id, slot]`."""
    return isinstance(value, list)


def declared(description: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Return the inputs of a node class, required ones first: name → `[type or choices, limits]`."""
    sections = (description["input"].get(category, {}) for category in ("required", "optional"))
    return {name: [*spec, {}][:2] for section in sections for name, spec in section.items()}


def links(node: Mapping[str, Any], descriptions: Descriptions) -> Iterator[str]:
    """Return the ids of the nodes that `node` takes inputs from; inputs that its class does not have are ignored."""
    names = declared(descriptions[node["class_type"]])
    inputs = node.get("inputs", {})
    return (inputs[name][0] for name in names if is_link(inputs.get(name)))


def error_body(kind: str, message: str, details: str = "") -> dict[str, Any]:
    """Return an error as `/prompt` answers it."""
    return {"type": kind, "message": message, "details": details, "extra_info": {}}


def validate(graph: Graph, descriptions: Descriptions, checks: FileChecks) -> Validation:
    """Check a prompt. Values are converted in place to the types that their inputs declare, as ComfyUI does."""
    for node_id, node in graph.items():
        if not isinstance(node, dict) or "class_type" not in node:
            message = "Cannot execute because a node is missing the class_type property."
            return Validation(error=error_body("invalid_prompt", message, f"Node ID '#{node_id}'"))
        if node["class_type"] not in descriptions:
            message = f"Cannot execute because node {node['class_type']} does not exist."
            return Validation(error=error_body("invalid_prompt", message, f"Node ID '#{node_id}'"))
    outputs = [node_id for node_id, node in graph.items() if descriptions[node["class_type"]]["output_node"]]
    if not outputs:
        return Validation(error=error_body("prompt_no_outputs", "Prompt has no outputs"))
    return _validate_outputs(_Validator(graph, descriptions, checks), outputs)


def _validate_outputs(validator: _Validator, outputs: list[str]) -> Validation:
    validation = Validation()
    reasons: list[str] = []
    for output in outputs:
        if validator.is_valid(output):
            validation.outputs.append(output)
            continue
        reasons += [f"{error['message']}: {error['details']}" for error in validator.errors.get(output, ())]
        for node_id, errors in validator.errors.items():
            if errors:
                class_type = validator.graph[node_id]["class_type"]
                entry = {"errors": errors, "dependent_outputs": [], "class_type": class_type}
                validation.node_errors.setdefault(node_id, entry)["dependent_outputs"].append(output)
    if not validation.outputs:
        message = "Prompt outputs failed validation"
        validation.error = error_body("prompt_outputs_failed_validation", message, "\n".join(reasons))
    return validation


class _Validator:
    """One pass over a graph, from an output up its links; remembers the nodes it has seen."""

    def __init__(self, graph: Graph, descriptions: Descriptions, checks: FileChecks) -> None:
        self.graph = graph
        self.errors: dict[str, list[dict[str, Any]]] = {}
        self._descriptions = descriptions
        self._checks = checks
        self._valid: dict[str, bool] = {}
        self._open: set[str] = set()

    def is_valid(self, output: str) -> bool:
        try:
            return self._node(output)
        except (LookupError, TypeError, ValueError) as error:
            info = {"exception_type": type(error).__name__, "traceback": []}
            self._fail(output, "exception_during_validation", "Exception when validating node", error, info)
            return False

    def _node(self, node_id: str) -> bool:
        if node_id in self._valid:
            return self._valid[node_id]
        if node_id in self._open:
            raise ValueError(f"Dependency cycle detected at node {node_id}")
        self._open.add(node_id)
        node = self.graph[node_id]
        inputs = node["inputs"]
        errors: list[dict[str, Any]] = []
        upstream = True
        description = self._descriptions[node["class_type"]]
        for name, config in declared(description).items():
            if name not in inputs:
                if name in description["input"]["required"]:
                    errors.append(_problem("required_input_missing", "Required input is missing", name))
            elif is_link(inputs[name]):
                error = self._link(name, config, inputs[name])
                if error is None:
                    upstream &= self._linked_node(name, config, inputs[name])
                else:
                    errors.append(error)
            elif error := self._widget(node["class_type"], inputs, name, config):
                errors.append(error)
        self._open.discard(node_id)
        self.errors[node_id] = errors
        self._valid[node_id] = upstream and not errors
        return self._valid[node_id]

    def _widget(self, class_type: str, inputs: dict[str, Any], name: str, config: list[Any]) -> dict[str, Any] | None:
        check = self._checks.get((class_type, name))
        if check is None:
            return _convert(inputs, name, config)
        reason = check(inputs[name])
        if reason is None:
            return None
        message = "Custom validation failed for node"
        return _problem("custom_validation_failed", message, name, f"{name} - {reason}")

    def _link(self, name: str, config: list[Any], link: list[Any]) -> dict[str, Any] | None:
        if len(link) != 2:
            message = "Bad linked input, must be a length-2 list of [node_id, slot_index]"
            return _problem("bad_linked_input", message, name, input_config=config, received_value=link)
        outputs = self._descriptions[self.graph[link[0]]["class_type"]]["output"]
        received = tuple(outputs)[link[1]]  # a tuple, for the words of its IndexError
        if received == config[0]:
            return None
        return _problem(
            "return_type_mismatch",
            "Return type mismatch between linked nodes",
            name,
            f"{name}, received_type({received}) mismatch input_type({config[0]})",
            input_config=config,
            received_type=received,
            linked_node=link,
        )

    def _linked_node(self, name: str, config: list[Any], link: list[Any]) -> bool:
        try:
            return self._node(link[0])
        except (LookupError, TypeError, ValueError) as error:
            info = {
                "input_name": name,
                "input_config": config,
                "exception_message": str(error),
                "exception_type": type(error).__name__,
                "traceback": [],
                "linked_node": link,
            }
            message = "Exception when validating inner node"
            self._fail(link[0], "exception_during_inner_validation", message, error, info)
            return False

    def _fail(self, node_id: str, kind: str, message: str, error: Exception, info: dict[str, Any]) -> None:
        self._valid[node_id] = False
        self.errors[node_id] = [{"type": kind, "message": message, "details": str(error), "extra_info": info}]


def _problem(kind: str, message: str, name: str, details: str | None = None, **extra_info: Any) -> dict[str, Any]:
    extra_info = {"input_name": name, **extra_info}
    return {"type": kind, "message": message, "details": details or name, "extra_info": extra_info}


def _convert(inputs: dict[str, Any], name: str, config: list[Any]) -> dict[str, Any] | None:
    """Convert a widget's value in place and check its range or its choices."""
    kind, limits = config
    value = inputs[name]
    given: dict[str, Any] = {"input_config": config, "received_value": value}
    if isinstance(kind, list):
        return None if value in kind else _not_in_list(name, config, value)
    try:
        value = inputs[name] = _CONVERSIONS.get(kind, lambda other: other)(value)
    except (TypeError, ValueError, OverflowError) as error:
        message = f"Failed to convert an input value to a {kind} value"
        details = f"{name}, {value}, {error}"
        return _problem("invalid_input_type", message, name, details, **given, exception_message=str(error))
    given["received_value"] = value
    if "min" in limits and value < limits["min"]:
        message = f"Value {value} smaller than min of {limits['min']}"
        return _problem("value_smaller_than_min", message, name, **given)
    if "max" in limits and value > limits["max"]:
        message = f"Value {value} bigger than max of {limits['max']}"
        return _problem("value_bigger_than_max", message, name, **given)
    return None


def _not_in_list(name: str, config: list[Any], value: Any) -> dict[str, Any]:
    choices = config[0]
    short = len(choices) <= _LONGEST_LIST_SHOWN
    details = f"{name}: '{value}' not in {choices if short else f'(list of length {len(choices)})'}"
    shown = config if short else None
    message = "Value not in list"
    return _problem("value_not_in_list", message, name, details, input_config=shown, received_value=value)


def execution_order(graph: Graph, outputs: list[str], descriptions: Descriptions) -> list[str]:
    """Return the nodes that the outputs need, each after those it takes its inputs from."""
    order: dict[str, None] = {}

    def visit(node_id: str) -> None:
        if node_id not in order:
            for upstream in links(graph[node_id], descriptions):
                visit(upstream)
            order[node_id] = None

    for output in outputs:
        visit(output)
    return list(order)


def signatures(graph: Graph, order: list[str], extra: Callable[[str], Any]) -> dict[str, str]:
    """Return a digest for each node of `order` that changes with anything its outputs depend on.

    `extra(node_id)` gives what the node's own inputs do not tell, such as the state of an input file.
    """
    digests: dict[str, str] = {}
    for node_id in order:
        node = graph[node_id]
        inputs = {
            name: [digests.get(value[0]), value[1:]] if is_link(value) else value
            for name, value in sorted(node["inputs"].items())
        }
        text = json.dumps([node["class_type"], inputs, extra(node_id)], sort_keys=True, default=str)
        digests[node_id] = hashlib.sha256(text.encode()).hexdigest()
    return digests
