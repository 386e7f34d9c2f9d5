"""Digests of the files of a result."""

import hashlib
import re

from command_line import on_picture

from captum_causalseg import cli


def digest(file):
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16]


def rows(folder):
    html = (folder / "out" / "report.html").read_text(encoding="utf-8")
    table = html[html.index('<section id="reproduce">') :].partition("</table>")[0]
    return re.findall(r'<td>([^<]*)</td><td class="text">([^<]*)</td><td class="text">([0-9a-f]{16})</td>', table)


def test_files_are_listed_with_their_digests(quick):
    folder, name = quick
    assert cli.main(on_picture(name, "--label", "mask.png", "--weights", "two.pt", "--donors", "donors")) == 0
    assert rows(folder)[:-1] == [
        ("image", "image.png", digest(folder / "image.png")),
        ("reference", "mask.png", digest(folder / "mask.png")),
        ("model", f"{name}.py", digest(folder / f"{name}.py")),
        ("model", "two.pt", digest(folder / "two.pt")),
    ]
    before = rows(folder)[-1]
    assert before[:2] == ("donors", "donors")
    (folder / "donors" / "3.png").write_bytes((folder / "donors" / "2.png").read_bytes())
    assert cli.main(on_picture(name, "--donors", "donors")) == 0
    assert rows(folder)[-1] != before


def test_private_results_do_not_name_files_of_the_case(quick):
    folder, name = quick
    assert cli.main(on_picture(name, "--label", "mask.png", "--model", "two.ts", "--private")) == 0
    assert [row[:2] for row in rows(folder)] == [("image", "an image"), ("reference", "a file"), ("model", "two.ts")]
