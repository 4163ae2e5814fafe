"""The spec that the tests of scoring and of the sample check vary."""

from models.task.spec import ArraySpec, Role, TaskSpec, TensorSpec

SPEC = TaskSpec(
    format=1,
    task="task",
    net="net",
    tensors=(TensorSpec("w", (1,), Role.SHARED),),
    x=ArraySpec("float32", (4,)),
    y=ArraySpec("int64", ()),
    classes=5,
    loss="cross_entropy",
    metric="accuracy",
    optimizer="sgd",
    proximal=False,
    infer_input="x",
    infer_output="out",
    slots=(),
)
