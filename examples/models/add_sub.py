"""Adds and subtracts two vectors: the smallest model with two inputs and two outputs."""


class Model:
    inputs = (
        ("INPUT0", "INT32", (16,)),
        ("INPUT1", "INT32", (16,)),
    )
    outputs = (
        ("OUTPUT0", "INT32", (16,)),
        ("OUTPUT1", "INT32", (16,)),
    )
    inline = True  # quicker than handing the request to a thread

    def infer(self, inputs):
        first, second = inputs["INPUT0"], inputs["INPUT1"]
        return {"OUTPUT0": first + second, "OUTPUT1": first - second}
