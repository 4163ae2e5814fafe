"""What onnxruntime says when a model fails, as one sentence. Pure; without onnxruntime.

Its exceptions have no common class but `Exception`, and their texts begin with codes and end with
paths of its own sources; in between stand the node and the reason, which are all that helps.
"""

import re

__all__ = ["failing_node", "runtime_sentence"]

_NODE = re.compile(r"while running (\w+) node\. Name:'([^']*)'")
_PREFIX = re.compile(r"^\s*\[ONNXRuntimeError\] : \d+ : [A-Z_]+ : ")
_SOURCE = re.compile(r"(?:/?[\w.+-]+/)*[\w.+-]+\.(?:cc|h|cpp|hpp):\d+\s*(?:\w+Impl\s+)?")
_FUNCTION = re.compile(r"(?:[\w:<>~&*]+ )*onnxruntime::[\w:<>~]+\([^)]*\)(?: \[[^\]]*\])?\s*:?\s*")
_CONDITION = re.compile(r"^.*?(?:was|were) false\.\s*")
_LONGEST = 300


def failing_node(error: Exception) -> tuple[str, str]:
    """Return name and operator of the node that failed, "" where onnxruntime does not say."""
    found = _NODE.search(str(error))
    return (found[2], found[1]) if found else ("", "")


def runtime_sentence(error: Exception) -> str:
    """Return where a model failed in onnxruntime and why, in one line of bounded length."""
    text = " ".join(str(error).split()) or type(error).__name__
    name, operator = failing_node(error)
    reason = text.split("Status Message:", 1)[1] if "Status Message:" in text else text
    for noise in (_PREFIX, _SOURCE, _FUNCTION):
        reason = noise.sub("", reason)
    reason = _CONDITION.sub("", reason.strip(" :")).strip(" :") or text
    if len(reason) > _LONGEST:
        reason = reason[:_LONGEST].rsplit(" ", 1)[0] + " ..."
    return f"node {name!r} ({operator}): {reason}" if operator else reason
