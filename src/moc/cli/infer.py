"""`moc infer`: arrays through a model."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moc.cli import screen
from moc.cli.session import Session, connected
from moc.cli.terms import DeadlineOption, PriorityOption, SessionOption, terms
from moc.client.views import TensorView
from moc.kernel.errors import InvalidRequest

if TYPE_CHECKING:
    from moc.client.tensors import Array


@connected
def infer(
    session: Session,
    model: Annotated[str, typer.Argument(metavar="NAME[@VERSION]")],
    inputs: Annotated[
        list[str],
        typer.Option("--input", metavar="NAME=VALUE", help="JSON, @FILE.json or @FILE.npy; repeatable."),
    ],
    dtypes: Annotated[
        list[str] | None,
        typer.Option("--dtype", metavar="NAME=TYPE", help="Send this input as INT32, FP32, …; repeatable."),
    ] = None,
    output_dir: Annotated[
        Path | None, typer.Option("--output-dir", metavar="DIR", help="Write each output to a file in DIR.")
    ] = None,
    deadline: DeadlineOption = None,
    priority: PriorityOption = None,
    session_name: SessionOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the outputs as JSON.")] = False,
) -> None:
    """Send tensors to a model and print what comes out."""
    given = _pairs(inputs, "--input")
    forced = _pairs(dtypes or [], "--dtype")
    values = {name: _value(name, text) for name, text in given.items()}
    with session.client() as client:
        specs = {spec["name"]: spec for spec in client.metadata(model)["inputs"]}
        arrays = {name: _array(name, value, specs, forced.get(name)) for name, value in values.items()}
        outputs = client.infer(model, arrays, **terms(deadline, priority, session_name))
    if output_dir is not None:
        for path in _save(output_dir, outputs):
            screen.line(str(path))
    elif as_json:
        screen.json({"model_name": model, "outputs": [_document(name, array) for name, array in outputs.items()]})
    else:
        for name, array in outputs.items():
            screen.line(f"{name} {_datatype(array)}{list(array.shape)}\n{array}")


def _pairs(texts: list[str], option: str) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise typer.BadParameter(f"{text!r} is not NAME=VALUE", param_hint=option)
        if name in pairs:
            raise typer.BadParameter(f"{name} is given twice", param_hint=option)
        pairs[name] = value
    return pairs


def _value(name: str, text: str) -> Any:
    """What an input holds: an array out of a .npy file, or whatever the JSON says."""
    import msgspec
    import numpy as np

    try:
        if text.startswith("@") and text.endswith(".npy"):
            return np.load(text[1:], allow_pickle=False)
        content = Path(text[1:]).read_bytes() if text.startswith("@") else text.encode()
        return msgspec.json.decode(content)
    except OSError as error:
        raise typer.BadParameter(f"cannot read {text[1:]}: {error.strerror or error}", param_hint="--input") from error
    except (ValueError, EOFError) as error:
        raise typer.BadParameter(
            f"{name} is neither JSON nor a .npy file ({error}); text is JSON when quoted: '{name}=\"…\"'",
            param_hint="--input",
        ) from error


def _array(name: str, value: Any, specs: dict[str, TensorView], forced: str | None) -> "Array":
    """The value as the array the model takes."""
    import numpy as np

    from moc.client.tensors import DTYPES, datatype_of

    spec = specs.get(name)
    if spec is None and specs:
        raise typer.BadParameter(f"the model takes {', '.join(specs)}, not {name}", param_hint="--input")
    try:
        array = np.asarray(value)
        datatype = forced or (spec["datatype"] if spec else datatype_of(array))
        if datatype not in DTYPES:
            raise ValueError(f"{datatype!r} is none of {', '.join(DTYPES)}")
        return _reshaped(_converted(array, datatype), spec["shape"] if spec else None)
    except (ValueError, TypeError, OverflowError, InvalidRequest) as error:
        raise typer.BadParameter(f"{name}: {error}", param_hint="--input") from error


def _converted(array: "Array", datatype: str) -> "Array":
    """The array in another type, if every value survives it."""
    import numpy as np

    from moc.client.tensors import DTYPES

    if (datatype == "BYTES") != (array.dtype.kind in "OSU"):
        raise ValueError(f"{datatype} is due, these are {array.dtype}")
    converted = array.astype(DTYPES[datatype])
    if DTYPES[datatype].kind in "iub" and not np.array_equal(converted, array):
        raise ValueError(f"some values do not fit into {datatype}")
    return converted


def _reshaped(array: "Array", shape: list[int] | None) -> "Array":
    """The array in the model's number of dimensions, when it leaves only one way to see that."""
    if shape is None or array.ndim == len(shape) or shape.count(-1) > 1:
        return array
    return array.reshape(shape)


def _datatype(array: "Array") -> str:
    from moc.client.tensors import datatype_of

    return datatype_of(array)


def _document(name: str, array: "Array") -> dict[str, Any]:
    data = array.reshape(-1).tolist()
    if array.dtype.kind == "O":
        data = [element.decode("utf-8", "backslashreplace") for element in data]
    return {"name": name, "datatype": _datatype(array), "shape": list(array.shape), "data": data}


def _save(folder: Path, outputs: "dict[str, Array]") -> list[Path]:
    """Write numbers as NAME.npy and every element of BYTES as NAME.INDEX.bin; returns the paths."""
    import numpy as np

    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, array in outputs.items():
        stem = re.sub(r"[^\w-]", "_", name)
        if array.dtype.kind != "O":
            written.append(folder / f"{stem}.npy")
            np.save(written[-1], array, allow_pickle=False)
            continue
        for index, element in enumerate(array.reshape(-1).tolist()):
            written.append(folder / f"{stem}.{index}.bin")
            written[-1].write_bytes(element)
    return written
