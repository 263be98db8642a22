import pytest

from lira.learning.dotted import import_dotted


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("broken_syntax", "class Net(:", "cannot import 'broken_syntax': SyntaxError: .*line 1"),
        ("broken_name", "undefined", "cannot import 'broken_name': NameError: name 'undefined'"),
        ("broken_exit", "raise SystemExit(3)", "cannot import 'broken_exit': SystemExit: 3"),
        ("broken_inside", "import os\nos.nothing", "cannot import 'broken_inside': AttributeError"),
        ("whole", "", "'whole' has no 'Net'"),
    ],
)
def test_what_the_users_module_does_is_named(tmp_path, monkeypatch, name, content, message):
    (tmp_path / f"{name}.py").write_text(content)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=message):
        import_dotted(f"{name}.Net", "model", ["mlp"], "a flax module")
