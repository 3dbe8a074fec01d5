"""Other people's clients, unchanged: if they are content, so are their users."""

from collections.abc import Callable
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parent / "clients"
Judge = Callable[..., str]


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("environment", "script"),
    [
        ("openai", "openai_sdk.py"),
        ("openai", "openai_files.py"),
        ("openai", "openai_responses.py"),
        ("openai", "openai_fine_tuning.py"),
        ("anthropic", "anthropic_sdk.py"),
        ("tritonclient", "triton_http.py"),
        ("tritonclient", "triton_grpc.py"),
        ("kserve", "kserve_rest.py"),
        ("kserve", "kserve_grpc.py"),
    ],
)
def test_client(judge: Judge, environment: str, script: str) -> None:
    assert judge(environment, "python", str(SCRIPTS / script)).endswith("ok\n")
