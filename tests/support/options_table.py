"""The README's table of options, made from the settings; run as a program it writes it there.

PYTHONPATH=tests python -m support.options_table
"""

from __future__ import annotations

from pathlib import Path

from server.commands.options import default_of, flag_of, section_of
from server.settings import ServerSettings, env_name, option_names

README = Path(__file__).resolve().parents[2] / "README.md"
BEGIN, END = "<!-- options: begin -->", "<!-- options: end -->"


def options_table() -> str:
    """One table per section: flag, environment variable, default, description."""
    lines: list[str] = []
    section = ""
    for name in option_names():
        if section_of(name) != section:
            section = section_of(name)
            lines += [
                "",
                f"| {section} | environment variable | default | |",
                "| --- | --- | --- | --- |",
            ]
        flag = " ".join(f"`{part}`" for part in flag_of(name).split("/"))
        default = f"`{default_of(name)}`" if default_of(name) else ""
        description = (ServerSettings.model_fields[name].description or "").replace("|", r"\|")
        lines.append(f"| {flag} | `{env_name(name)}` | {default} | {description} |")
    return "\n".join([*lines, ""])


def replaced(readme: str) -> str:
    """The README with the present table between its marks."""
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{options_table()}\n{END}{after}"


if __name__ == "__main__":
    README.write_text(replaced(README.read_text(encoding="utf-8")), encoding="utf-8")
