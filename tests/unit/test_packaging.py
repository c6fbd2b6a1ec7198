"""The files that wrap the project: requirements, settings template, README, CI."""

import ast
import os
import re
import subprocess
import tomllib
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from enhanced_websocket_service.settings import MAX_KEYS, Settings, load_settings

ROOT = Path(__file__).resolve().parents[2]
ALL = ROOT / "requirements-enhanced-websocket.txt"
RUNTIME = ROOT / "deploy" / "requirements-runtime.txt"
DEV = ROOT / "requirements-dev.txt"
TEMPLATE = ROOT / ".env.enhanced-websocket"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


# --- requirements -------------------------------------------------------------------------------


def pins(path: Path) -> dict[str, list[Requirement]]:
    """Canonical name -> pins (more than one where the Python version decides)."""
    found: dict[str, list[Requirement]] = {}
    text = path.read_text().replace("\\\n", " ")
    for line in text.splitlines():
        if line.strip() and not line.lstrip().startswith("#"):
            specifier, _, hashes = line.partition("--hash=")
            assert hashes.startswith("sha256:"), f"{path.name}: no hash: {line[:60]}"
            requirement = Requirement(specifier.strip())
            assert [s.operator for s in requirement.specifier] == ["=="], line[:60]
            found.setdefault(canonicalize_name(requirement.name), []).append(requirement)
    return found


ENTRIES = {
    ALL: PROJECT["dependencies"] + PROJECT["optional-dependencies"]["test"],
    RUNTIME: PROJECT["dependencies"],
    DEV: PROJECT["optional-dependencies"]["dev"],
}


@pytest.mark.parametrize(("path", "entries"), ENTRIES.items(), ids=["all", "runtime", "dev"])
def test_pins_satisfy_pyproject(path: Path, entries: list[str]) -> None:
    locked = pins(path)
    for entry in map(Requirement, entries):
        name = canonicalize_name(entry.name)
        assert name in locked, f"{entry} is not in {path.name}: run scripts/lock-requirements"
        for pin in locked[name]:
            version = next(iter(pin.specifier)).version
            assert entry.specifier.contains(version), f"{pin} does not satisfy {entry}"


def extras_asked_for(entries: Iterable[str], names: Iterable[str]) -> dict[str, set[str]]:
    """Name -> extras that ``entries``, or any installed distribution of ``names``, require of it."""
    asked: dict[str, set[str]] = {}
    metadata_of: dict[str, list[Requirement]] = {"": [Requirement(entry) for entry in entries]}
    for name in names:
        try:
            metadata_of[name] = [Requirement(entry) for entry in metadata.requires(name) or ()]
        except metadata.PackageNotFoundError:
            continue  # of another platform or Python, or one of the development tools
    while True:
        known = sum(map(len, asked.values()))
        for name, requirements in metadata_of.items():
            for one in requirements:
                # An extra that is asked for may itself ask for others.
                enabled = {"", *asked.get(name, ())}
                marker = one.marker
                if one.extras and (
                    marker is None or any(marker.evaluate({"extra": extra}) for extra in enabled)
                ):
                    asked.setdefault(canonicalize_name(one.name), set()).update(one.extras)
        if sum(map(len, asked.values())) == known:
            return asked


def extras_not_pinned(path: Path, entries: Iterable[str]) -> set[str]:
    locked = pins(path)
    return {
        f"{name}[{extra}]"
        for name, extras in extras_asked_for(entries, locked).items()
        for extra in extras
        if not all(extra in pin.extras for pin in locked[name])
    }


def is_installed(pin: Requirement) -> bool:
    try:
        return pin.specifier.contains(metadata.version(pin.name))
    except metadata.PackageNotFoundError:
        return False


def lock_is_installed() -> bool:
    """Not so where ``scripts/test-lowest`` runs."""
    locked = [pin for group in pins(ALL).values() for pin in group]
    return all(is_installed(pin) for pin in locked if pin.marker is None or pin.marker.evaluate())


needs_the_lock = pytest.mark.skipif(
    not lock_is_installed(), reason="what is installed is not what the lock pins"
)


@needs_the_lock
@pytest.mark.parametrize(("path", "entries"), ENTRIES.items(), ids=["all", "runtime", "dev"])
def test_extras_that_anything_requires_are_pinned(path: Path, entries: list[str]) -> None:
    """pip before 23.3 takes ``coverage==7.17.3`` for no pin of ``coverage[toml]`` and refuses the file."""
    assert extras_not_pinned(path, entries) == set()


@needs_the_lock
@pytest.mark.parametrize("pinned", re.findall(r"^[\w.-]+\[\w+\]", ALL.read_text(), re.M))
def test_an_extra_that_leaves_the_lock_is_noticed(pinned: str, tmp_path: Path) -> None:
    without = tmp_path / ALL.name
    without.write_text(ALL.read_text().replace(f"\n{pinned}==", f"\n{pinned.split('[')[0]}=="))
    assert extras_not_pinned(without, ENTRIES[ALL]) == {pinned}


@needs_the_lock
def test_coverage_brings_toml() -> None:
    """Seen in the wild; should nothing ask for it any more, the two tests above have nothing to find."""
    assert "toml" in extras_asked_for(ENTRIES[ALL], pins(ALL))["coverage"]


@pytest.mark.parametrize("path", [ALL, RUNTIME, DEV], ids=lambda path: path.name)
def test_requirements_name_no_index_and_no_folder(path: Path) -> None:
    options = [
        line
        for line in path.read_text().splitlines()
        if re.match(r"\s*(-|.*(://|file:|\s/))", line) and "--hash=sha256:" not in line
    ]
    assert options == []


def test_smaller_files_pin_the_same_versions() -> None:
    everything = {str(pin) for group in pins(ALL).values() for pin in group}
    runtime = {str(pin) for group in pins(RUNTIME).values() for pin in group}
    assert runtime < everything
    shared_names = pins(ALL).keys() & pins(DEV).keys()
    assert {str(p) for n in shared_names for p in pins(DEV)[n]} <= everything


def test_image_carries_no_test_libraries() -> None:
    tests_only = {
        canonicalize_name(Requirement(entry).name)
        for entry in PROJECT["optional-dependencies"]["test"]
    }
    assert not tests_only & pins(RUNTIME).keys()


def test_first_patch_release_of_python_is_covered() -> None:
    """redis-py needs async-timeout below 3.11.3, and Debian ships 3.11.2."""
    assert Requirement(f"x{PROJECT['requires-python']}").specifier.contains("3.11.0")
    for path in (ALL, RUNTIME):
        (pin,) = pins(path)["async-timeout"]
        assert pin.marker is not None
        assert pin.marker.evaluate({"python_full_version": "3.11.2"})
        assert not pin.marker.evaluate({"python_full_version": "3.11.3"})


def test_installed_package_has_its_data_files() -> None:
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    patterns = tools["setuptools"]["package-data"]["enhanced_websocket_service"]
    package = ROOT / "enhanced_websocket_service"
    packed = {path for pattern in patterns for path in package.glob(pattern)}
    forgotten = [
        str(path.relative_to(ROOT))
        for path in package.rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc") and path not in packed
    ]
    assert forgotten == []


# --- settings template --------------------------------------------------------------------------

ASSIGNMENT = re.compile(r"^(#?)([A-Z][A-Z0-9_]*)=(.*)$")
KEY_NAMES = [f"TWELVEDATA_API_KEY_G{g}_{n}" for g in (1, 2) for n in range(1, MAX_KEYS // 2 + 1)]


def template() -> dict[str, tuple[bool, str, str]]:
    """Variable -> (commented out, value, the comment above)."""
    found = {}
    lines = TEMPLATE.read_text().splitlines()
    for i, line in enumerate(lines):
        if match := ASSIGNMENT.match(line):
            assert match[2] not in found, f"{match[2]} stands twice"
            found[match[2]] = (match[1] == "#", match[3], lines[i - 1])
    return found


def test_template_has_every_setting_and_no_other() -> None:
    fields = {name.upper() for name in Settings.model_fields} - {"KEYS", "SYMBOL_CALENDARS"}
    assert template().keys() == fields | set(KEY_NAMES)


def test_every_setting_of_the_template_is_explained() -> None:
    for name, (_, value, above) in template().items():
        assert above.startswith("# "), name
        assert not ASSIGNMENT.match(above), name
        assert not {'"', "'", " ", "#"} & set(value), f"{name}: docker --env-file keeps those"
    stray = [
        line
        for line in TEMPLATE.read_text().splitlines()
        if line and not line.startswith("# ") and line != "#" and not ASSIGNMENT.match(line)
    ]
    assert stray == []


def test_template_holds_defaults_and_placeholders_only(tmp_path: Path) -> None:
    """Copied unedited it changes nothing; with every line active it states the defaults."""
    loaded = load_settings({}, dotenv=TEMPLATE)
    assert loaded.settings.keys == ()
    assert loaded.settings == load_settings({}).settings
    for name, (commented, value, above) in template().items():
        if name in KEY_NAMES:
            assert not commented
            assert value.startswith("your_")
            continue
        assert commented, f"{name} has a default and stands commented out"
        field = Settings.model_fields[name.lower()]
        default = field.get_default(call_default_factory=True, validated_data={})
        given = getattr(_with(name, value), name.lower())
        if "Example" in above:
            assert name == "STATE_DIR" or name == "PROVIDER" or not default
        else:
            assert given == default, f"{name}={value} is not the default"


def _with(name: str, value: str) -> Settings:
    """Settings in which ``name`` is set, beside what it may only be set together with."""
    partner = {"SSL_CERT_PATH": "SSL_KEY_PATH", "SSL_KEY_PATH": "SSL_CERT_PATH"}.get(name)
    environ = {name: value} | ({partner: "x.pem"} if partner else {})
    loaded = load_settings(environ)
    assert not [w for w in loaded.warnings if name in w]
    return loaded.settings


def test_settings_reference_agrees_with_the_template() -> None:
    page = (ROOT / "docs" / "reference" / "settings.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|", page, re.M))
    assert rows.keys() == template().keys() - set(KEY_NAMES)
    for name, default in rows.items():
        _, value, above = template()[name]
        if "Example" not in above:
            assert default == f"`{value}`", name
    assert all(f"`{name}`" in page for name in (KEY_NAMES[0], KEY_NAMES[MAX_KEYS // 2]))


def test_readme_names_defaults_as_they_are() -> None:
    rows = re.findall(r"^\| `(\w+)` \| `([^`]+)` \|", (ROOT / "README.md").read_text(), re.M)
    assert len(rows) >= 2
    assert all(template()[name][1] == value for name, value in rows)


# --- README and CI ------------------------------------------------------------------------------

COMMAND = re.compile(r"^python3 -m venv \.venv && .*$", re.M)


def test_readme_opens_with_the_two_commands() -> None:
    screen = "\n".join((ROOT / "README.md").read_text().splitlines()[:40])
    commands = COMMAND.findall(screen)
    assert len(commands) == 2
    for command in commands:
        assert f"-r {ALL.name}" in command
    assert commands[0].endswith("enhanced_websocket_service.py demo")
    assert commands[1].endswith("-m pytest tests/")


def test_ci_takes_its_test_command_from_the_readme() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    pattern = re.search(r"grep -E '([^']+)' README\.md", script)
    assert pattern is not None
    assert len(re.findall(pattern[1], (ROOT / "README.md").read_text(), re.M)) == 1


@pytest.mark.parametrize("name", [".ci/run", "scripts/lock-requirements", "scripts/test-lowest"])
def test_shell_scripts_parse(name: str) -> None:
    subprocess.run(["bash", "-n", ROOT / name], check=True, timeout=60)


def test_links_between_documents_lead_somewhere() -> None:
    broken = [
        f"{page.relative_to(ROOT)} -> {target}"
        for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text())
        if "://" not in target and not (page.parent / target).exists()
    ]
    assert broken == []


def test_documents_named_in_the_code_exist() -> None:
    named = {
        (path.relative_to(ROOT), page)
        for path in (ROOT / "enhanced_websocket_service").rglob("*")
        if path.suffix in (".py", ".sql", ".js", ".html")
        for page in re.findall(r"docs/[\w/-]+\.md", path.read_text())
    }
    assert {f"{path}: {page}" for path, page in named if not (ROOT / page).is_file()} == set()


def test_decisions_are_short_and_listed() -> None:
    folder = ROOT / "docs" / "decisions"
    index = (folder / "README.md").read_text()
    for record in folder.glob("0*.md"):
        assert f"({record.name})" in index
        text = record.read_text()
        assert len(text.splitlines()) < 40, record.name
        for part in ("**Context.**", "**Decision.**", "**Consequences.**"):
            assert part in text, record.name


def test_version_has_a_changelog_entry() -> None:
    source = (ROOT / "enhanced_websocket_service" / "__init__.py").read_text()
    version = next(
        ast.literal_eval(node.value)
        for node in ast.parse(source).body
        if isinstance(node, ast.AnnAssign) and node.value is not None
    )
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text()
