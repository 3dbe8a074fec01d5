"""The official OpenAI SDK, unchanged: files."""

# ruff: noqa: PT017 - these are programs, not tests

import io
import json
import os
import tempfile
from pathlib import Path

import openai

client = openai.OpenAI(base_url=f"{os.environ['MOC_URL']}/v1", api_key=os.environ["MOC_KEY"], max_retries=0)

rows = "".join(
    json.dumps({"messages": [{"role": "user", "content": str(n)}, {"role": "assistant", "content": "ü"}]}) + "\n"
    for n in range(2000)
)
with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "train.jsonl"
    path.write_text(rows)
    with path.open("rb") as opened:
        added = client.files.create(file=opened, purpose="fine-tune")
assert (added.object, added.filename, added.purpose, added.status) == ("file", "train.jsonl", "fine-tune", "processed")
assert added.bytes == len(rows.encode()), added
assert client.files.retrieve(added.id) == added
assert client.files.content(added.id).read() == rows.encode()
assert client.files.wait_for_processing(added.id) == added

others = [client.files.create(file=(f"{n}.jsonl", io.BytesIO(b"{}")), purpose="evals") for n in range(3)]
listed = client.files.list(purpose="evals")
assert [file.id for file in listed.data] == [file.id for file in reversed(others)], listed
assert [file.id for file in client.files.list(purpose="evals", limit=2, order="asc")] == [file.id for file in others]

for file in others:
    deleted = client.files.delete(file.id)
    assert (deleted.id, deleted.object, deleted.deleted) == (file.id, "file", True)

brief = client.files.create(file=("a", b"a"), purpose="evals", expires_after={"anchor": "created_at", "seconds": 3600})
assert brief.expires_at == brief.created_at + 3600, brief
client.files.delete(brief.id)

for refused, kind in (
    (lambda: client.files.retrieve(others[0].id), openai.NotFoundError),
    (lambda: client.files.create(file=("a", b"a"), purpose="batch"), openai.BadRequestError),
    (lambda: client.files.create(file=("a", b""), purpose="evals"), openai.BadRequestError),
    (
        lambda: client.files.create(
            file=("a", b"a"), purpose="evals", expires_after={"anchor": "created_at", "seconds": 3599}
        ),
        openai.BadRequestError,
    ),
):
    try:
        refused()
    except kind as error:
        assert error.body["message"], error.body
    else:
        raise AssertionError(f"should have been refused with {kind.__name__}")
client.files.delete(added.id)
print("ok")
