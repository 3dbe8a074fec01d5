"""A model that takes half a second, one request at a time."""

import time
from typing import Any


class Model:
    inputs = (("INPUT0", "FP32", (-1,)),)
    outputs = (("OUTPUT0", "FP32", (-1,)),)

    def infer(self, inputs: dict[str, Any]) -> dict[str, Any]:
        time.sleep(0.5)
        return {"OUTPUT0": inputs["INPUT0"]}
