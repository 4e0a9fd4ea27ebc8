"""``nlhf report``: runs side by side, in one file of HTML that loads nothing."""

from __future__ import annotations

from pathlib import Path

from nlhf_zoo.cli.files import refuse_output
from nlhf_zoo.cli.parser import SentenceParser, with_values
from nlhf_zoo.cli.report import page, sections
from nlhf_zoo.cli.report.reading import names_of, read_run
from nlhf_zoo.cli.run_folders import find_runs
from nlhf_zoo.errors import UserError
from nlhf_zoo.files import written


def main(args: list[str]) -> None:
    """Run ``nlhf report`` with what stands behind it on the command line."""
    title = "One page for runs, which works offline."
    parser = SentenceParser(prog="nlhf report", description=title)
    parser.add_argument("runs", nargs="*", type=str, help="folders of runs of nlhf fit")
    parser.add_function_arguments(report, skip={"runs"})
    parsed = parser.parse_args(with_values(args, ["--overwrite"]))
    options = parser.instantiate(parsed).as_dict()
    report([Path(run) for run in options.pop("runs") or ()], **options)


def report(
    runs: list[Path],
    output: Path = Path("report.html"),
    certificate: list[Path] | None = None,
    tournament: list[Path] | None = None,
    overwrite: bool = False,
) -> None:
    """Write a page about runs.

    Args:
        runs: folders of runs of `nlhf fit`, or their checkpoints.
        output: the file to write.
        certificate: folders that `nlhf certify` has written; those in a run's folder are found.
        tournament: folders that `nlhf tournament` has written, likewise.
        overwrite: whether a file that is there is replaced.
    """
    if not runs:
        raise UserError(
            "there is no run: give the folder of one, as in nlhf report runs/.../version_0"
        )
    folders = find_runs(runs)
    refuse_output("--output", output, [])
    if output.exists() and not overwrite:
        raise UserError(f"--output {output} exists: give another name, or --overwrite")
    read = [read_run(*each) for each in zip(folders, names_of(folders), strict=True)]
    certificates, tournaments = (
        [*(given or ()), *_found(folders, what)]
        for given, what in ((certificate, "certificate"), (tournament, "tournament"))
    )
    found = {  # which may refuse a folder, and is read before anything is drawn
        "Certificate": sections.results(certificates, "certificate", "nlhf certify"),
        "Tournament": sections.results(tournaments, "tournament", "nlhf tournament"),
    }
    title = ", ".join(run.name for run in read) if len(read) < 4 else f"{len(read)} runs"
    content = page.page(
        f"nlhf: {title}",
        {
            "Summary": sections.summary(read),
            "Curves": sections.curves(read),
            "Figures": sections.figures(read),
            **found,
            "Samples": sections.samples(read),
            "Ledger": sections.ledger(read),
            "Configuration": sections.configuration(read),
            "Versions": sections.versions(read),
        },
    )
    with written(output) as beside:
        beside.write_text(content, encoding="utf-8")
    print(f"Report: {output}")


def _found(folders: list[Path], what: str) -> list[Path]:
    """Folders in those of the runs whose names say what another command has written there."""
    return [path for each in folders for path in sorted(each.glob(f"{what}*")) if path.is_dir()]
