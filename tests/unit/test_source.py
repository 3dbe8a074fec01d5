"""What a source may look like."""

import pytest

from moc.kernel.errors import InvalidRequest
from moc.models.sources.source import FileSource, HubSource, WebSource, WheelSource, parse_sha256, parse_source


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("file:models/a b.gguf", FileSource("models/a b.gguf")),
        ("pypi:a.b-c==1.0+cpu#x/*.gguf", WheelSource("pypi:a.b-c==1.0+cpu#x/*.gguf", "a.b-c==1.0+cpu", "x/*.gguf")),
        ("https://h/p?q=1#part", WebSource("https://h/p?q=1")),
        ("http://localhost:1/p", WebSource("http://localhost:1/p")),
        ("http://[::1]/p", WebSource("http://[::1]/p")),
        ("hf:org/repo", HubSource("hf:org/repo", "org/repo", "main", "")),
        ("hf:org/repo@refs/pr/1#*.onnx", HubSource("hf:org/repo@refs/pr/1#*.onnx", "org/repo", "refs/pr/1", "*.onnx")),
        ("hf:gpt2@v1", HubSource("hf:gpt2@v1", "gpt2", "v1", "")),
    ],
)
def test_reads_every_kind(text: str, parsed: object) -> None:
    assert parse_source(text) == parsed


@pytest.mark.parametrize(
    "text",
    [
        "",
        "model.gguf",
        "file:",
        "file:a\0b",
        "ftp://h/p",
        "https://",
        "https:///path",
        "https://h:port/p",
        "https://user:secret@h/p",
        "http://example.com/model.gguf",
        "http://127.0.0.1.example.com/p",
        "pypi:name#*.gguf",
        "pypi:name==1.0",
        "pypi:name==1.*#f",
        "pypi:--index-url=x==1#f",
        "pypi:name==1 --pre#f",
        "pypi:name @ https://h/w.whl#f",
        "hf:",
        "hf:a/b/c",
        "hf:../b",
        "hf:a/b@",
        "hf:a/b@../x",
    ],
)
def test_refuses_what_cannot_be_right(text: str) -> None:
    with pytest.raises(InvalidRequest):
        parse_source(text)


def test_keeps_secrets_out_of_what_it_says() -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_source("https://user:secret@h/p")
    assert "secret" not in caught.value.message
    source = parse_source("https://h/p?signature=secret")
    assert isinstance(source, WebSource)
    assert source.shown == "https://h/p"


def test_reads_a_hash() -> None:
    assert parse_sha256(None) is None
    assert parse_sha256("sha256:" + "AB" * 32) == "ab" * 32
    for wrong in ("", "ab" * 31, "zz" * 32, "md5:" + "ab" * 16):
        with pytest.raises(InvalidRequest):
            parse_sha256(wrong)
