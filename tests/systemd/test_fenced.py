"""What a page tells its reader to type."""

import pytest
from fenced import Command, commands

PAGE = """
# Title

```sh
make demo
```

## Install

```sh
sudo apt install -y git   # once
sudo tee a.toml <<'TOML'
[device]
id = "a"  # yours

TOML
long \\
    line
```

```toml
[no]
commands = "here"
```

```sh
# not a heading
ls
```

## Next

```sh
rm it
```
"""


def test_a_section_has_its_own_commands_in_order() -> None:
    assert [command.text for command in commands(PAGE, "Install")] == [
        "sudo apt install -y git   # once",
        "sudo tee a.toml <<'TOML'\n[device]\nid = \"a\"  # yours\n\nTOML",
        "long \\\n    line",
        "# not a heading",
        "ls",
    ]


def test_a_command_knows_its_block_and_what_its_comment_promises() -> None:
    found = commands(PAGE, "Install")
    assert [command.block for command in found] == [0, 0, 0, 1, 1]
    assert Command("status      # release, accuracy", 0).promise == "release, accuracy"
    assert found[-1].promise == ""


def test_a_section_that_is_gone_is_an_error_and_no_empty_test() -> None:
    with pytest.raises(ValueError, match="nothing fenced as sh below 'On the Moon'"):
        commands(PAGE, "On the Moon")
