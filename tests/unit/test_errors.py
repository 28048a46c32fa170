"""No message holds a secret."""

import pytest

from llm_unlearn.errors import DiskFullError, InputError, redacted

pytestmark = pytest.mark.unit

TOKEN = "hf_" + "aB3d" * 8


@pytest.mark.parametrize(
    ("text", "left"),
    [
        (f"https://user:{TOKEN}@hub.example/x failed", "https://…@hub.example/x failed"),
        ("https://secret-user@hub.example/x", "https://…@hub.example/x"),
        ("https://h.example/x?a=1&access_token=abc123&b=2", "https://h.example/x?a=1&access_token=…&b=2"),
        ("https://h.example/x?X-Amz-Signature=abc&sig=q", "https://h.example/x?X-Amz-Signature=…&sig=…"),
        (f"model {TOKEN}: no such folder", "model …: no such folder"),
        ("data.files: a@b.csv?x=1, https://h.example/a:b@c", "data.files: a@b.csv?x=1, https://h.example/a:b@c"),
    ],
)
def test_an_error_says_no_secret(text, left):
    assert redacted(text) == str(InputError(text)) == str(DiskFullError(text)) == left
