"""Test what an installation holds: pytest tests/test_packaging.py"""

import configparser
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_every_folder_of_code_is_installed():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    listed = set(setup["options"]["packages"].split())
    found = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "cnnlab").rglob("*.py")}
    assert listed == found | {"cnnlab.tuning"}
    assert all((ROOT / package.replace(".", "/") / "__init__.py").exists() for package in found)


def test_every_file_beside_the_code_is_installed():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    listed = {
        ROOT / package.replace(".", "/") / name
        for package, names in setup["options.package_data"].items()
        for name in names.split()
    }
    found = {path for path in (ROOT / "cnnlab").rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}
    assert listed == found
