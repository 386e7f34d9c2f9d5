"""The report of a study."""

import re
from html import unescape
from urllib.parse import unquote

import pandas as pd
from command_line import status_of

from captum_causalseg.cohort import Cohort

LINE = ["cohort", "--cases", "cases.csv", "--config", "study.yaml", "--out", "study"]


def page(folder):
    """Its text as it is read, and its links."""
    html = (folder / "study" / "report.html").read_text(encoding="utf-8")
    body = html.partition("<main>")[2]
    rows = re.findall(r"<tr class=\"\">(.*?)</tr>", body)
    cells = [[unescape(re.sub(r"<.*?>", "", cell)) for cell in re.findall(r"<td.*?>(.*?)</td>", row)] for row in rows]
    return unescape(re.sub(r"<.*?>", " ", body)), cells, re.findall(r'href="([^#"]+)"', body)


def write(folder, name, cases):
    lines = [
        f"model: {name}:two",
        "weights: two.pt",
        'normalize: "255"',
        "roi: box:8,8+8",
        "draws: 4",
        "units: 8",
        "donors: donors",
    ]
    (folder / "study.yaml").write_text("\n".join(lines))
    (folder / "cases.csv").write_text(cases)


def test_a_study_has_a_page_that_says_what_its_tables_say(quick):
    folder, name = quick
    write(
        folder,
        name,
        "id,image,label,site\nMiller <7>/a,image.png,mask.png,Bern\nb,donors/0.png,mask.png,Jena\nc,absent/Smith.png,,Bern\n",
    )
    assert status_of(LINE) == 1
    text, cells, links = page(folder)
    summary, cohort = pd.read_csv("study/summary.csv").iloc[0], Cohort("study")
    means = {row[0]: row[1:] for row in cells if len(row) == 3}
    lower, upper = summary[["observed_score_lower", "observed_score_upper"]]
    # Of two cases: from below 0 to above 1, where no Dice is, which is said.
    assert lower < 0 < 1 < upper
    assert means["Dice of the region of interest"] == [f"{summary['observed_score']:.4g}", f"[{lower:.4g}, {upper:.4g}]*"]
    assert "2 of 3 cases were explained." in text
    assert "Effects on Dice by the distance of the parts" in text
    first, second, third = (row for row in cells if len(row) == 8)
    assert first[:3] == ["Miller <7>/a", "Bern", "finished"]
    assert first[3] == f"{float(cohort.statistics('Miller <7>/a').of_output(1).observed_score):.4f}"
    assert third == ["c", "Bern", "failed", "", "", "", "", ""]
    assert second[:3] == ["b", "Jena", "finished"]
    assert ["c", "InputError: --image: there is no file absent/Smith.png"] in cells
    # Links lead to the folders of the cases, whatever their names hold.
    assert len(links) == 2
    for link in links:
        assert (folder / "study" / unquote(link) / "statistics.npz").is_file()
    digests = {row[0]: row[1] for row in cells if len(row) == 3}
    assert digests["table of cases"] == "cases.csv"
    assert digests["model"] in (f"{name}.py", "two.pt")
    assert digests["donors"] == "donors"
    assert "causalseg cohort --cases cases.csv --config study.yaml --out study" in text


def test_a_private_page_names_no_case(quick):
    folder, name = quick
    write(folder, name, "id,image,roi,physician\nMiller,image.png,mask.png,Jones\nSmith,absent/Smith.png,mask.png,Jones\n")
    assert status_of([*LINE, "--private"]) == 1
    text, cells, links = page(folder)
    html = (folder / "study" / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"Miller|Smith|Jones|mask\.png|image\.png|cases\.csv", re.sub('base64,[^"]*', "", html))
    assert links == []
    assert [row[0] for row in cells if len(row) == 7] == ["case 1", "case 2"]
    assert ["case 2", "InputError"] in cells
    assert "two.pt" in text  # the model's files are no patients'


def test_a_study_of_which_everything_failed_has_a_page_that_says_why(quick):
    folder, name = quick
    write(folder, name, "id,image\na,absent.png\n")
    assert status_of(LINE) == 1
    text, cells, _ = page(folder)
    assert "None of 1 case could be explained: see below why." in text
    assert ["a", "InputError: --image: there is no file absent.png"] in cells
